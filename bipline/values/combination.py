"""Combination: one thing that a comparison tries, and how it is written in a line."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator

from bipline.storage.digests import digest_json

Scalar = str | int | float | bool
UNIFORM, NONE = "uniform", "none"


class Choice(BaseModel, frozen=True, extra="forbid"):
    """A criterion, allocation or compensation with its options, written ``flap:metric=ifv``."""

    name: str
    options: dict[str, Scalar] = Field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read ``NAME[:KEY=VALUE]...``. Raises ValueError for anything else."""
        name, *pairs = (part.strip() for part in text.split(":"))
        options: dict[str, Scalar] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not (key and equals and value) or key in options:
                raise ValueError(f"{text!r}: write NAME or NAME:KEY=VALUE, each key once")
            options[key] = value
        if not name:
            raise ValueError(f"{text!r}: a name is missing")
        return cls(name=name, options=options)

    @property
    def label(self) -> str:
        """The choice as it is written."""
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


class Method(BaseModel, frozen=True, extra="forbid"):
    """A criterion, an allocation and a compensation, written ``flap/uniform/bias``.

    Each part may have options of its own (``obs:ridge=0.1``); None is what goes with the
    criterion. ``alias`` is the name it was asked for by where that stands for others: ``auto``.
    """

    criterion: Choice
    allocation: Choice | None = None
    compensation: Choice | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``CRITERION[/ALLOCATION[/COMPENSATION]]``. Raises ValueError for anything else."""
        parts = [part.strip() for part in text.split("/")]
        if len(parts) > 3:
            raise ValueError(f"{text!r}: write CRITERION/ALLOCATION/COMPENSATION")
        criterion, *rest = parts
        chosen = [Choice.parse(part) if part else None for part in rest] + [None, None]
        return cls(criterion=Choice.parse(criterion), allocation=chosen[0], compensation=chosen[1])

    @property
    def label(self) -> str:
        """One line that names the method."""
        parts = (self.criterion, self.allocation, self.compensation)
        return "/".join([*filter(None, [self.alias]), *(p.label for p in parts if p)])


class Combination(BaseModel, frozen=True, extra="forbid"):
    """One thing to try. ``ratio`` is a share of what ``ratio_of`` says.

    ``alias`` is the name it was asked for by where that stands for others: ``auto``.
    """

    model: str
    calibration: str
    alias: str | None = None
    criterion: Choice
    allocation: Choice
    layout: str = UNIFORM
    compensation: Choice = Choice(name=NONE)
    ratio: float
    seed: int = 0
    ratio_of: str = "blocks"
    ffn_multiple: int | None = None
    keep_first: int = 0
    keep_last: int = 0
    divisible_by: int = 1
    of_experts: str = Field("whole", exclude_if=lambda value: value == "whole")

    @field_validator("compensation", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Version 1 wrote the name alone."""
        return Choice(name=value) if isinstance(value, str) else value

    @property
    def compensates(self) -> bool:
        """Whether anything is to be corrected."""
        return self.compensation.name != NONE

    @property
    def drawing(self) -> tuple[str, int]:
        """What is alike where the same windows are drawn: calibration text and seed."""
        return self.calibration, self.seed

    @property
    def scoring(self) -> tuple[str, int, str]:
        """What is alike where the same statistics are taken: the criterion too."""
        return *self.drawing, self.criterion.label

    @property
    def selection(self) -> str:
        """What chooses the groups: criterion, allocation, and a layout that is not as usual."""
        return self._written(self._selecting)

    @property
    def method(self) -> str:
        """What is chosen between: the selection, and the compensation where there is one."""
        corrects = [self.compensation.label] if self.compensates else []
        return self._written([*self._selecting, *corrects])

    @property
    def label(self) -> str:
        """One line that names the combination among those of its model."""
        return f"{self.method}, ratio {self.ratio:g}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """What tells the combination apart from all others."""
        return digest_json(self.model_dump(mode="json"))

    @property
    def unnamed(self) -> Combination:
        """The same by its own names: what it stands for decides the outcome."""
        return self.model_copy(update={"alias": None})

    def written(self) -> dict[str, Any]:
        """Every field, criterion, allocation and compensation as they are written in a line."""
        chosen = ("criterion", "allocation", "compensation")
        return {**self.model_dump(mode="json"), **{n: getattr(self, n).label for n in chosen}}

    @property
    def _selecting(self) -> list[str]:
        unusual = [] if self.layout == UNIFORM else [self.layout]
        return [self.criterion.label, self.allocation.label, *unusual]

    def _written(self, parts: list[str]) -> str:
        return f"{self.alias} ({', '.join(parts)})" if self.alias else ", ".join(parts)
