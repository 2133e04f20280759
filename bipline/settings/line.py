"""Settings of the stages that make a smaller model out of a model: one class a stage.

``calibrate`` to ``prune`` follow the data; ``compute`` says where and how windows are run, in
whichever stage runs some. Field names are unique over all of them, so that a flag or a keyword
needs no prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from bipline.base.errors import InvalidInput
from bipline.settings.base import (
    ByteCount,
    MethodOptions,
    ParameterCount,
    SeedNumber,
    Settings,
)
from bipline.settings.gguf import GgufType
from bipline.settings.method_names import ALLOCATIONS, CRITERIA

RatioOf = Literal["blocks", "total"]
Layout = Literal["uniform", "per-layer"]
DtypeName = Literal["float32", "bfloat16", "float64"]
# What computes may also be told; a record names what it was computed in.
ComputeDtype = Literal["auto", "float32", "bfloat16", "float64"]
CompensationName = Literal["none", "bias", "least-squares", "obs", "osscar", "slimgpt"]
OfExperts = Literal["whole", "channels"]
Effort = Literal["quick", "balanced", "best"]
USUAL_EFFORT: Effort = "balanced"
EFFORT = (
    "how much work the widths and the corrections of auto, compensated, least-squares and obs "
    "take: quick, balanced or best; an option that is given stays as given (docs/auto.md)"
)
# Left out where it is the usual one, as it was before it could be set.
EffortField = Annotated[
    Effort, Field(exclude_if=lambda effort: effort == USUAL_EFFORT, description=EFFORT)
]
# What may be asked for in place of a ratio.
TARGETS = ("target_parameters", "target_size")
MODEL = "model directory, hf:org/name@revision, s3://bucket/prefix or models:/name@alias"
TEXTS = "name: .txt, .jsonl, .json, .csv or .parquet file, chat:FILE, or hf:org/name?split=..."


def _known(value: Any) -> Any:
    names = get_args(CompensationName)
    if value is not None and value not in names:
        raise ValueError(f"compensation {value!r} is unknown; known: {', '.join(names)}")
    return value


Compensation = Annotated[CompensationName, BeforeValidator(_known)]


class CalibrateSettings(Settings):
    """Which token windows scores are computed on."""

    texts: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={"calibration": 1.0},
        description="names of texts with their weight in the mix",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="number of windows; null is 128, or as many as compensation needs; with effort "
        "best 65,536 tokens of them, as far as the texts go",
    )
    fewest_samples: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        exclude_if=lambda fewest: fewest is None,
        description="so many are enough where the texts hold no more; null: as many as samples",
    )
    seqlen: int = Field(default=128, ge=2, description="window length in tokens")

    @model_validator(mode="after")
    def _no_more_than_samples(self) -> CalibrateSettings:
        if self.samples and self.fewest_samples and self.fewest_samples > self.samples:
            raise ValueError(
                f"fewest_samples {self.fewest_samples} is above samples {self.samples}"
            )
        return self


class ScoreSettings(Settings):
    """How important each group is."""

    criterion: str = Field(
        default="auto",
        description="how importance is measured: auto (brings its own allocation and "
        f"compensation), {', '.join(CRITERIA)}",
    )
    criterion_option: MethodOptions = Field(
        default={}, description="the criterion's own options, KEY=VALUE; see docs/methods"
    )
    statistics: str | None = Field(
        default=None, description="directory of saved statistics: reuse, or write"
    )
    parts: int = Field(
        default=1,
        ge=1,
        description="parallel steps that share the calibration windows; the sums are the same",
    )


class CommonSettings(Settings):
    """What a share is counted of, and what must stay whatever goes."""

    ratio_of: RatioOf = Field(
        default="blocks",
        description="what ratio is a share of: blocks (their linear weights), or total",
    )
    keep_first: int = Field(default=0, ge=0, description="first blocks that stay whole")
    keep_last: int = Field(default=0, ge=0, description="last blocks that stay whole")
    divisible_by: int = Field(
        default=1, ge=1, description="kept groups and channels divide by this (tensor parallelism)"
    )
    ffn_multiple: int | None = Field(
        default=None, ge=1, description="FFN channels go in multiples of this; null picks one"
    )
    of_experts: OfExperts = Field(
        default="whole",
        exclude_if=lambda value: value == "whole",
        description="what a mixture of experts loses: whole experts, or channels of every expert, "
        "as many of each",
    )


class AllocateSettings(CommonSettings):
    """How much goes, and from where."""

    ratio: float = Field(default=0.2, description="share of weights to remove, between 0 and 1")
    target_parameters: ParameterCount | None = Field(
        default=None,
        description="in place of ratio: the most parameters that stay, such as 100M or 1.2B; null "
        "is none",
    )
    target_size: ByteCount | None = Field(
        default=None,
        description="in place of ratio: the most bytes of the weights as they are exported, such "
        "as 200MB or 0.5GiB; null is none",
    )
    target_format: str | None = Field(
        default=None,
        description="what target_size is of: hf, or gguf:TYPE; null is the gguf that is exported, "
        "where one is, else hf",
    )
    allocation: str | None = Field(
        default=None,
        description=f"which block loses how much: {', '.join(ALLOCATIONS)}. Null is uniform, depth "
        "where the criterion scores blocks, or what goes with criterion auto",
    )
    allocation_option: MethodOptions = Field(
        default={},
        description="the allocation's own options, KEY=VALUE, such as attention=query-heads; see "
        "docs/methods",
    )
    layout: Layout = Field(
        default="uniform",
        description="uniform: same widths in every block, a plain checkpoint; per-layer: blocks "
        "differ, and transformers loads the result with the code in it",
    )
    plan: str | None = Field(
        default=None, description="apply the plan in this file; nothing is scored or allocated"
    )

    @property
    def target(self) -> tuple[str, int] | None:
        """The target that was asked for in place of a ratio, by its name; None where none was."""
        given = ((name, getattr(self, name)) for name in TARGETS)
        return next(((name, most) for name, most in given if most is not None), None)

    @property
    def budget_is_given(self) -> bool:
        """Whether a ratio or a target was asked for, and not left to the default."""
        return "ratio" in self.model_fields_set or self.target is not None

    @property
    def budget(self) -> str:
        """What was asked for, in words."""
        name, most = self.target or ("ratio", f"{self.ratio:g}")
        return f"{name} {most}"

    @model_validator(mode="after")
    def _one_budget(self) -> AllocateSettings:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if "ratio" in self.model_fields_set:
            given.insert(0, "ratio")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of ratio, {', '.join(TARGETS)}")
        if self.target_format is not None:
            if self.target_size is None:
                raise ValueError("target_format says what target_size is of; give both")
            check_target_format(self.target_format)
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not set of the targets, and without a ratio that one replaces."""
        values: dict[str, Any] = serialize(self)
        left_out = {name for name in (*TARGETS, "target_format") if values.get(name) is None}
        if self.target is not None:
            left_out.add("ratio")
        return {name: value for name, value in values.items() if name not in left_out}


def check_target_format(name: str) -> None:
    """Raise ValueError for what is neither hf nor a gguf of a type that there is."""
    types = get_args(GgufType)
    if name != "hf" and name not in {f"gguf:{type_}" for type_ in types}:
        raise ValueError(
            f"target_format {name!r}: give hf, or gguf:TYPE with one of {', '.join(types)}"
        )


class CompensateSettings(Settings):
    """How the weights that stay make up for those that go."""

    compensation: Compensation | None = Field(
        default=None,
        description="none, bias, least-squares or obs; null is none, or what goes with criterion "
        "auto",
    )
    compensation_option: MethodOptions = Field(
        default={}, description="its options, KEY=VALUE; see docs/compensation.md"
    )
    corrections: str | None = Field(
        default=None,
        description="directory of corrected tensors: apply them with their plan, or write them",
    )

    @property
    def chosen(self) -> CompensationName:
        """The compensation by name: none where none is named."""
        return self.compensation or "none"


class PruneSettings(Settings):
    """How the smaller model is written."""

    shard_size: ByteCount = Field(
        default=5 * 10**9, ge=1, description="largest shard, in bytes or as 5GB"
    )


class ComputeSettings(Settings):
    """Where and how windows are run, in every stage that runs some."""

    device: str = Field(
        default="auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )
    dtype: ComputeDtype = Field(
        default="float32",
        description="compute dtype of forward passes: float32, bfloat16, or auto, the quicker of "
        "them that keeps the same groups, by a measured second",
    )
    max_memory: ByteCount | None = Field(
        default=None, description="most memory to use, such as 2.5GB; null is what is free"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, le=16, description="windows run together; null picks by their length"
    )
    processes: int = Field(
        default=1, ge=1, description="processes that share the calibration windows when scoring"
    )

    @property
    def named_dtype(self) -> DtypeName:
        """The dtype by name: float32 for auto, where no stage that runs windows settles it."""
        return "float32" if self.dtype == "auto" else self.dtype


class LineSettings(Settings):
    """From a model and its texts to a smaller model."""

    model: str = Field(description=MODEL)
    texts: dict[str, str] = Field(default={}, description=TEXTS)
    seed: SeedNumber = Field(default=0, description="draws windows, and whatever a method draws")
    effort: EffortField = USUAL_EFFORT
    calibrate: CalibrateSettings = CalibrateSettings()
    score: ScoreSettings = ScoreSettings()
    allocate: AllocateSettings = AllocateSettings()
    compensate: CompensateSettings = CompensateSettings()
    prune: PruneSettings = PruneSettings()
    compute: ComputeSettings = ComputeSettings()


SECTIONS: dict[str, type[Settings]] = {
    name: type(field.default)
    for name, field in LineSettings.model_fields.items()
    if isinstance(field.default, Settings)
}


# Fields of flags and keywords that lie in no section.
UNSECTIONED = ("seed", "effort")


def sectioned(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by their bare names, as flags and keywords give them, put into their sections.

    Fields that are None are left to their defaults. Raises InvalidInput for a name that no
    section has.
    """
    places = {name: s for s, kind in SECTIONS.items() for name in kind.model_fields}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in (*places, *UNSECTIONED):
            close = get_close_matches(name, places, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(places)}"
            raise InvalidInput(f"unknown key {name!r}; {hint}")
        if value is not None:
            section = values.setdefault(places[name], {}) if name in places else values
            section[name] = value
    return values
