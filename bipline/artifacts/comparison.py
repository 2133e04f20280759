"""Comparison: methods side by side on the same models, texts and protocol.

A :class:`Combination` says what was tried, an :class:`Outcome` what came of it: figures, or the
reason why it cannot be. Both together are a :class:`Row`. Seconds and memory are kept apart from
the figures, because they differ from run to run and nothing else does.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bipline.artifacts.digests import digest_json
from bipline.artifacts.plan import Budget
from bipline.artifacts.record import EvaluationRecord, Perplexity
from bipline.artifacts.summary import StageSummary

SCHEMA_VERSION: Literal[1] = 1
Scalar = str | int | float | bool
# What goes without saying in the name of a method.
USUAL = {"layout": "uniform", "compensation": "none"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Frozen):
    """A criterion or a rule with the options it is given, written ``flap:metric=ifv``."""

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


class Combination(_Frozen):
    """One thing to try. ``ratio`` is a share of what ``ratio_of`` says."""

    model: str
    calibration: str
    criterion: Choice
    allocation: Choice
    layout: str = "uniform"
    compensation: str = "none"
    ratio: float
    seed: int = 0
    ratio_of: str = "blocks"
    ffn_multiple: int | None = None
    keep_first: int = 0
    keep_last: int = 0
    divisible_by: int = 1

    @property
    def method(self) -> str:
        """What is chosen between: criterion, rule, and what is not as usual."""
        unusual = [getattr(self, name) for name in USUAL if getattr(self, name) != USUAL[name]]
        return ", ".join([self.criterion.label, self.allocation.label, *unusual])

    @property
    def label(self) -> str:
        """One line that names the combination among those of its model."""
        return f"{self.method}, ratio {self.ratio:g}, seed {self.seed}"

    @property
    def but_seed(self) -> str:
        """The digest of everything except the seed: what is alike in repetitions."""
        return digest_json(self.model_dump(mode="json", exclude={"seed"}))

    def settings(self) -> dict[str, Any]:
        """Everything that decides the outcome besides the content of model and texts."""
        return self.model_dump(mode="json", exclude={"model", "calibration"})


class Change(_Frozen):
    """The pruned model less the dense one, on one text: nats per token, and perplexity."""

    nll: float
    perplexity: float


class Parameters(_Frozen):
    """The number of parameters of the dense model and of the pruned one."""

    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The share that is left."""
        return self.after / self.before


class Measured(_Frozen):
    """The figures of a pruned model. ``widths``: attention groups and FFN channels by block."""

    plan_digest: str
    tensor_digest: str
    protocol_digest: str
    parameters: Parameters
    ratio: Budget
    widths: tuple[tuple[int, int], ...]
    file_bytes: int
    perplexity: dict[str, Perplexity]
    change: dict[str, Change]


class Cost(_Frozen):
    """Seconds per stage and the highest memory, in bytes.

    ``sums_from`` names the criterion whose pass gave the sums, where the row's own did not: its
    seconds are not counted a second time.
    """

    seconds: dict[str, float] = Field(default_factory=dict)
    peak_anonymous_bytes: int = 0
    peak_device_bytes: int = 0
    sums_from: str | None = None

    def plus(self, other: Cost) -> Cost:
        """Both together: the seconds of each stage, the higher memory."""
        return Cost(
            seconds={**self.seconds, **other.seconds},
            peak_anonymous_bytes=max(self.peak_anonymous_bytes, other.peak_anonymous_bytes),
            peak_device_bytes=max(self.peak_device_bytes, other.peak_device_bytes),
            sums_from=self.sums_from or other.sums_from,
        )

    @property
    def total_seconds(self) -> float:
        """All stages together."""
        return round(sum(self.seconds.values()), 3)


class Outcome(_Frozen):
    """What came of a combination: figures with their cost, or the reason of its refusal."""

    refusal: str | None = None
    measured: Measured | None = None
    cost: Cost = Cost()

    @property
    def digest(self) -> str:
        """The digest of all but seconds and memory, which no two runs share."""
        return digest_json(self.model_dump(mode="json", exclude={"cost"}))


class Row(_Frozen):
    """A combination and its outcome; ``directory`` is where its model was kept, if it was."""

    combination: Combination
    refusal: str | None
    measured: Measured | None
    cost: Cost
    directory: str | None = None

    @classmethod
    def of(cls, combination: Combination, outcome: Outcome, directory: str | None = None) -> Row:
        """The row of a combination; a refused one has no directory."""
        place = directory if outcome.measured else None
        return cls(combination=combination, directory=place, **dict(outcome))


class ComparedModel(_Frozen):
    """A dense model: where it came from, and its record under the common protocol."""

    source: str
    revision: str | None = None
    licence: str | None = None
    record: EvaluationRecord


class ComparedCalibration(_Frozen):
    """A calibration text and the windows drawn from it, ``samples`` of ``seqlen`` tokens."""

    source: str
    sha256: str
    samples: int
    seqlen: int


class Comparison(_Frozen):
    """Everything a comparison tells; models and calibrations by the names rows use."""

    schema_version: Literal[1] = SCHEMA_VERSION
    models: dict[str, ComparedModel]
    calibrations: dict[str, ComparedCalibration]
    rows: tuple[Row, ...]

    @property
    def texts(self) -> list[str]:
        """Names of the evaluation texts, in the order they were given."""
        first = next(iter(self.models.values()))
        return list(first.record.perplexity)


class Best(_Frozen):
    """The combination that a selection picked, and why; ``value`` is the minimised mean."""

    rows: tuple[Row, ...]
    minimised: str
    value: float


class Tracked(_Frozen):
    """Where a comparison was told to MLflow, and the best of it; None where nothing qualified."""

    mlflow_run_id: str
    best: Best | None


class SweepSummary(_Frozen):
    """One sweep from its first stage to its last; ``best`` is None where nothing qualified."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run_name: str
    run_id: str
    mlflow_run_id: str
    status: str
    seconds: float
    stages: tuple[StageSummary, ...]
    comparison: Comparison
    best: Best | None
    report: str
