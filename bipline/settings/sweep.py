"""Configuration of a sweep: strict and frozen like :mod:`bipline.settings.compress`.

Criteria and rules are written as on the command line: ``flap:metric=ifv``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bipline.base.errors import InvalidInput
from bipline.comparison.methods import Asked
from bipline.comparison.selection import Selection
from bipline.settings.compress import (
    CalibrateSection,
    EvaluateSection,
    ScoreSection,
    Section,
    all_known,
    config_schema,
    load,
)
from bipline.settings.protocol import DtypeName, Protocol
from bipline.values.combination import Choice

DEVICE = "auto (a GPU where there is one), cpu, cuda or cuda:N"


class GridSection(Section):
    """What is tried: every combination of these."""

    criteria: tuple[str, ...] | None = Field(
        default=None,
        description="NAME or NAME:KEY=VALUE, auto too; null is auto where there are no methods",
    )
    allocations: tuple[str, ...] = Field(
        default=(),
        description="NAME or NAME:KEY=VALUE; none is the rule that goes with the criterion",
    )
    layouts: tuple[Literal["uniform", "per-layer"], ...] = Field(
        default=("uniform",), min_length=1, description="uniform and per-layer"
    )
    compensations: tuple[str, ...] = Field(
        default=(),
        description="NAME or NAME:KEY=VALUE; none is what goes with the criterion: auto's own, or "
        "no compensation",
    )
    methods: tuple[str, ...] = Field(
        default=(),
        description="CRITERION/ALLOCATION/COMPENSATION beside the product of the three above; a "
        "part left out is what goes with the criterion",
    )
    ratios: tuple[float, ...] = Field(
        default=(0.2, 0.35, 0.5), min_length=1, description="shares of parameters to remove"
    )
    seeds: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="each draws calibration windows of its own"
    )

    @model_validator(mode="after")
    def _readable(self) -> GridSection:
        for text in (*self.scored, *self.allocations, *self.compensations):
            Choice.parse(text)
        for text in self.methods:
            Asked.parse(text)
        return self

    @property
    def scored(self) -> tuple[str, ...]:
        """The criteria: auto where neither a criterion nor a method is named."""
        if self.criteria is None:
            return () if self.methods else ("auto",)
        return self.criteria


class DrawSection(Section):
    """Which token windows criteria see; the seeds are those of the grid."""

    texts: dict[str, float] = Field(
        default={"calibration": 1.0}, description="names of texts with their weight in the mix"
    )
    samples: int = Field(default=128, ge=1, description="number of windows")
    seqlen: int = Field(default=128, ge=2, description="window length in tokens")


class ComputeSection(Section):
    """How windows are run, in scoring and in rules that measure."""

    dtype: DtypeName = Field(default="float32", description="compute dtype")
    device: str = Field(default="auto", description=DEVICE)
    micro_batch: int | None = Field(
        default=None, ge=1, le=16, description="windows run together; null picks by their length"
    )


class CommonSection(Section):
    """What all combinations share of an allocation."""

    ratio_of: Literal["blocks", "total"] = Field(
        default="blocks",
        description="what a ratio is a share of: linear weights of the blocks, or all parameters",
    )
    keep_first: int = Field(default=0, ge=0, description="first blocks that stay whole")
    keep_last: int = Field(default=0, ge=0, description="last blocks that stay whole")
    divisible_by: int = Field(
        default=1, ge=1, description="kept groups and channels divide by it (tensor parallelism)"
    )
    ffn_multiple: int | None = Field(
        default=None, ge=1, description="FFN channels go in multiples of this; null picks one"
    )


class MeasureSection(Section):
    """What is measured on the dense model and on every row alike."""

    texts: tuple[str, ...] = Field(
        default=("held-out",), min_length=1, description="texts for perplexity"
    )
    protocol: Protocol = Field(default=Protocol(), description="how they are measured")
    device: str = Field(default="auto", description=DEVICE)


class SweepConfig(Section):
    """One sweep: a model, its texts, the grid, and what the best row must be."""

    model: str = Field(description="model directory or hf:org/name@revision")
    texts: dict[str, str] = Field(description="name: .txt or .jsonl file, or hf:org/name?split=...")
    state: str = Field(
        default=".bipline", description="folder for the store, ZenML's and MLflow's state, logs"
    )
    grid: GridSection = GridSection()
    calibrate: DrawSection = DrawSection()
    compute: ComputeSection = ComputeSection()
    allocate: CommonSection = CommonSection()
    evaluate: MeasureSection = MeasureSection()
    select: Selection | None = Field(
        default=None, description="which row is the best, and within which limits"
    )

    @model_validator(mode="after")
    def _names_exist(self) -> SweepConfig:
        all_known("text", [*self.calibrate.texts, *self.evaluate.texts], self.texts)
        if self.evaluate.protocol.speed:
            raise ValueError("evaluate.protocol.speed: a sweep measures perplexity, not speed")
        if self.select:
            self.select.check(self.evaluate.texts)
        return self

    def calibration(self, seed: int) -> CalibrateSection:
        """The windows of one seed."""
        return CalibrateSection(**self.calibrate.model_dump(), seed=seed)

    def scoring(self, criterion: Choice, seed: int) -> ScoreSection:
        """How one criterion scores."""
        return ScoreSection(
            criterion=criterion.name,
            options=criterion.options,
            seed=seed,
            dtype=self.compute.dtype,
            device=self.compute.device,
            micro_batch=self.compute.micro_batch,
        )

    @property
    def evaluation(self) -> EvaluateSection:
        """How the dense model is measured, as the compress pipeline takes it."""
        section = self.evaluate
        return EvaluateSection(
            texts=section.texts, protocol=section.protocol, device=section.device
        )


def load_sweep(path: Path, overrides: tuple[str, ...] = ()) -> SweepConfig:
    """Read a sweep's configuration (see :func:`bipline.settings.compress.load`)."""
    return load(SweepConfig, path, overrides)


def schema_of(pipeline: str) -> dict[str, Any]:
    """The JSON schema of a pipeline's configuration. Raises InvalidInput for another name."""
    schemas = {"compress": config_schema, "sweep": SweepConfig.model_json_schema}
    if pipeline not in schemas:
        raise InvalidInput(f"{pipeline!r} has no configuration; known: {', '.join(schemas)}")
    return schemas[pipeline]()
