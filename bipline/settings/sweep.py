"""Settings of a sweep: a model, its texts, what is tried, and what the best row must be.

Criteria and allocations are written as on the command line: ``flap:metric=ifv``.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, model_validator

from bipline.settings.base import SeedNumber, Settings
from bipline.settings.compress import TASKS, Tasks, all_known
from bipline.settings.line import (
    MODEL,
    TEXTS,
    USUAL_EFFORT,
    CalibrateSettings,
    CommonSettings,
    ComputeSettings,
    EffortField,
    Layout,
)
from bipline.settings.protocol import Protocol
from bipline.settings.stack import StackSettings
from bipline.values.combination import Choice, Method
from bipline.values.figures import kind_of, row_names


class GridSettings(Settings):
    """What is tried: every combination of these."""

    criteria: tuple[str, ...] | None = Field(
        default=None,
        description="NAME or NAME:KEY=VALUE, auto too; null is auto where there are no methods",
    )
    allocations: tuple[str, ...] = Field(
        default=(),
        description="NAME or NAME:KEY=VALUE, such as threshold:tokens=4000; none is the one that "
        "goes with the criterion",
    )
    layouts: tuple[Layout, ...] = Field(
        default=("uniform",), min_length=1, description="uniform and per-layer"
    )
    compensations: tuple[str, ...] = Field(
        default=(),
        description="NAME or NAME:KEY=VALUE, such as obs:ridge=0.1; none is what goes with the "
        "criterion: auto's own, or no compensation",
    )
    methods: tuple[str, ...] = Field(
        default=(),
        description="CRITERION/ALLOCATION/COMPENSATION beside the product of the three above; a "
        "part left out is what goes with the criterion",
    )
    ratios: tuple[float, ...] = Field(
        default=(0.2, 0.35, 0.5), min_length=1, description="shares of parameters to remove"
    )
    seeds: tuple[SeedNumber, ...] = Field(
        default=(0,), min_length=1, description="each draws calibration windows of its own"
    )

    @model_validator(mode="after")
    def _readable(self) -> GridSettings:
        for text in (*self.scored, *self.allocations, *self.compensations):
            Choice.parse(text)
        for text in self.methods:
            Method.parse(text)
        return self

    @property
    def scored(self) -> tuple[str, ...]:
        """The criteria: auto where neither a criterion nor a method is named."""
        if self.criteria is None:
            return () if self.methods else ("auto",)
        return self.criteria


class MeasureSettings(Settings):
    """What is measured on the dense model and on every row alike."""

    texts: tuple[str, ...] = Field(
        default=("held-out",), min_length=1, description="texts for perplexity"
    )
    tasks: tuple[str, ...] = Field(default=(), description="zero-shot tasks")
    protocol: Protocol = Field(
        default=Protocol(), description="how they are measured, and whether speed is"
    )


class Selection(Settings):
    """What is minimised or maximised, and the limits that every seed of a combination must meet."""

    minimise: str | None = Field(
        default=None,
        description="figure whose mean over seeds is to be least: perplexity.TEXT, parameters, ...",
    )
    maximise: str | None = Field(
        default=None,
        description="or the one whose mean is to be highest: acc.TASK, decode_factor, ...",
    )
    at_most: dict[str, float] = Field(
        default={},
        description="limits by figure, such as parameters_ratio or perplexity_increase.TEXT",
    )
    at_least: dict[str, float] = Field(
        default={}, description="limits by figure, such as acc.TASK or acc_change.TASK"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Selection:
        if (self.minimise is None) == (self.maximise is None):
            raise ValueError("select: give one of minimise and maximise")
        return self

    @property
    def figure(self) -> str:
        """The figure that decides."""
        return self.minimise or self.maximise or ""

    def check(
        self, texts: Iterable[str], tasks: Iterable[str] = (), with_speed: bool = False
    ) -> None:
        """Raise ValueError for a figure that rows do not have, or that is better the other way."""
        known = row_names(texts, tasks, with_speed)
        for name in (self.figure, *self.at_most, *self.at_least):
            if name not in known:
                raise ValueError(f"select: {name!r} is no figure; known: {', '.join(known)}")
        better = kind_of(self.figure).better
        if better == ("higher" if self.minimise else "lower"):
            way = "maximise" if self.minimise else "minimise"
            raise ValueError(f"select: {self.figure} is better where it is {better}; write {way}")


class ComparisonSettings(Settings):
    """What rows are tried, on which windows, and how each is measured."""

    grid: GridSettings = GridSettings()
    effort: EffortField = USUAL_EFFORT
    calibrate: CalibrateSettings = CalibrateSettings()
    compute: ComputeSettings = ComputeSettings()
    allocate: CommonSettings = CommonSettings()
    evaluate: MeasureSettings = MeasureSettings()


class SweepSettings(StackSettings, ComparisonSettings):
    """One sweep: a model, its texts, the grid, and what the best row must be."""

    model: str = Field(description=MODEL)
    texts: dict[str, str] = Field(description=TEXTS)
    tasks: Tasks = Field(default={}, description=TASKS)
    select: Selection | None = Field(
        default=None, description="which row is the best, and within which limits"
    )

    @model_validator(mode="after")
    def _names_exist(self) -> SweepSettings:
        all_known("text", [*self.calibrate.texts, *self.evaluate.texts], self.texts)
        all_known("task", self.evaluate.tasks, self.tasks)
        if self.select:
            measured = self.evaluate
            self.select.check(measured.texts, measured.tasks, measured.protocol.speed)
        return self
