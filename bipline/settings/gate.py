"""Settings of a gate: what a package must show before an alias may point at it.

A gate is a YAML file; ``strict`` and ``lenient`` come with bipline and explain every line. Every
key that is given is a check of its own, and what a check cannot tell does not pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bipline.base.bundled import bundled
from bipline.base.errors import InvalidInput
from bipline.settings.base import Settings
from bipline.settings.loading import load
from bipline.storage.digests import digest_json
from bipline.values.figures import FORMAT_FIGURES, FORMAT_TEXT_FIGURES, KINDS

READY = ("strict", "lenient")
EVERY = "*"
Share = Annotated[float, Field(ge=0)]


class Limit(Settings):
    """A bound on one figure: on its value, or on how it stands to another model's.

    How much worse or better is a share of the other's value (``perplexity``, ``parameters``,
    tokens per second) or a difference (accuracies: 0.02 is two points; ``nll``: nats).
    """

    figure: str = Field(
        description="name of a figure: perplexity.TEXT, acc.TASK, parameters, ...; "
        "perplexity.* is every text; format_perplexity.gguf.TEXT is of the gguf by llama.cpp"
    )
    against: Literal["dense", "champion"] | None = Field(
        default=None, description="the model it is compared with; null: the value alone counts"
    )
    at_most: float | None = Field(default=None, description="largest value")
    at_least: float | None = Field(default=None, description="smallest value")
    worse_at_most: Share | None = Field(default=None, description="most that may be lost")
    better_at_least: Share | None = Field(default=None, description="least that must be gained")
    judged_by: Literal["interval", "value"] = Field(
        default="interval",
        description="interval: the end of the paired 95 % interval that hurts, of speeds the end "
        "of the range; value: what was measured",
    )

    @model_validator(mode="after")
    def _means_something(self) -> Limit:
        kind, values = KINDS.get(self.figure.partition(".")[0]), (self.at_most, self.at_least)
        changes = (self.worse_at_most, self.better_at_least)
        if kind is None:
            raise ValueError(f"limit on {self.figure!r}: no such figure; known: {', '.join(KINDS)}")
        if self.against is None and changes != (None, None):
            raise ValueError(f"limit on {self.figure}: worse or better than what? set against")
        if self.against and values != (None, None):
            raise ValueError(
                f"limit on {self.figure} against {self.against}: write worse_at_most or "
                "better_at_least"
            )
        if self.figure.partition(".")[0] in FORMAT_FIGURES:
            self._check_format()
        if self.against and kind.better == "neither":
            raise ValueError(f"limit on {self.figure}: neither more nor less of it is better")
        if sum(bound is not None for bound in (*values, *changes)) != 1:
            raise ValueError(
                f"limit on {self.figure}: give one of at_most, at_least, worse_at_most and "
                "better_at_least"
            )
        return self

    def _check_format(self) -> None:
        kind, _, subject = self.figure.partition(".")
        if self.against:
            raise ValueError(
                f"limit on {self.figure} against {self.against}: a format has windows of its "
                "own; limit format_perplexity_increase, which is against its model on the same ones"
            )
        parts = subject.split(".", 1)
        wanted = 2 if kind in FORMAT_TEXT_FIGURES else 1
        if not all(parts) or (len(parts) if wanted == 2 else 1 + subject.count(".")) != wanted:
            shape = "FORMAT.TEXT, or FORMAT.* for every text" if wanted == 2 else "FORMAT"
            raise ValueError(f"limit on {self.figure!r}: write {kind}.{shape}")


class Requirements(Settings):
    """What must be true of a package besides its figures; what is null or empty is not asked."""

    formats: tuple[str, ...] = Field(default=(), description="formats that it must hold")
    signature: bool = Field(default=False, description="it must bear a signature that holds")
    licences: tuple[str, ...] = Field(
        default=(), description="licences of the source that will do, as models name them"
    )
    evaluation_days: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="most days since it was evaluated"
    )
    protocol: str | None = Field(
        default=None, description="name, or digest, of the protocol it was evaluated under"
    )


class GateSettings(Settings):
    """A gate: limits on figures, and requirements."""

    limits: tuple[Limit, ...] = Field(default=(), description="bounds on figures")
    requirements: Requirements = Field(
        default=Requirements(), description="what must be true besides"
    )
    first_champion: bool = Field(
        default=False,
        description="whether limits against the champion let a version through where the alias "
        "points at nothing yet",
    )

    @model_validator(mode="after")
    def _asks_something(self) -> GateSettings:
        if not self.limits:
            raise ValueError("limits: a gate without one lets everything through")
        return self

    @property
    def digest(self) -> str:
        """The digest of what it asks, however its file is written."""
        return digest_json(self.model_dump(mode="json"))


def load_gate(name: str) -> GateSettings:
    """The gate of a ready name or in a YAML file. Raises InvalidInput for one that is neither."""
    if name in READY:
        return load(GateSettings, bundled(f"configs/gates/{name}.yaml"))
    if not Path(name).suffix and not Path(name).exists():
        raise InvalidInput(f"gate {name!r}: no such file; ready gates: {', '.join(READY)}")
    return load(GateSettings, Path(name))


def gate_name(name: str) -> str:
    """What a gate is called in verdicts: the ready name, or the file's without its folder."""
    return name if name in READY else Path(name).name
