"""Comparison: methods side by side on the same models, texts and protocol.

A :class:`Combination` says what was tried, an :class:`Outcome` what came of it: figures, or the
reason why it cannot be. Both together are a :class:`Row`. Seconds and memory are kept apart from
the figures, because they differ from run to run and nothing else does.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bipline.storage.digests import digest_json
from bipline.values.combination import Combination
from bipline.values.compensation import CompensationRecord, counts_text
from bipline.values.differences import SHARES_OF_ROWS, kind_name, paired_differences
from bipline.values.frozen import Frozen
from bipline.values.paired import PairedDifference
from bipline.values.plan import Budget, PruningPlan
from bipline.values.record import EvaluationRecord, Perplexity, TaskResult
from bipline.values.speed import ADDED, Speeds
from bipline.values.summary import BeforeAfter, StageSummary

# Version 1 named a compensation by a word alone, and knew no method by another name.
SCHEMA_VERSION: Literal[2] = 2


class Change(Frozen):
    """The pruned model less the dense one, on one text: nats per token, and perplexity.

    ``paired`` is the change of nats over the windows; not in older comparisons.
    """

    nll: float
    perplexity: float
    paired: PairedDifference | None = ADDED

    @classmethod
    def of(
        cls, dense: Perplexity, pruned: Perplexity, paired: PairedDifference | None = None
    ) -> Change:
        """The change on a text that both were measured on."""
        nll, value = pruned.nll - dense.nll, pruned.value - dense.value
        return cls(nll=nll, perplexity=value, paired=paired)


class Compensated(Frozen):
    """What compensation did: how many matrices took which, and errors block by block.

    ``error`` is that on held-out windows as it was chosen, ``error_without`` that of the same
    block with nothing corrected (see :class:`bipline.values.compensation.BlockRecord`).
    """

    forms: dict[str, int]
    fitted_tokens: int
    held_out_tokens: int
    error_without: tuple[float, ...]
    error: tuple[float, ...]

    @classmethod
    def of(cls, record: CompensationRecord) -> Compensated:
        """The short form of a plan's record."""
        return cls(
            forms=record.counts(),
            fitted_tokens=record.fitted_tokens,
            held_out_tokens=record.held_out_tokens,
            error_without=tuple(block.error_without for block in record.blocks),
            error=tuple(block.error for block in record.blocks),
        )

    @property
    def told(self) -> str:
        """How many took which, as users read it."""
        return counts_text(self.forms)


class Measured(Frozen):
    """The figures of a pruned model. ``widths``: attention groups and FFN channels by block.

    ``query_heads`` are those that each group keeps where some of them went.
    ``experts`` are those of a block in the dense model and in this one, where there are some.
    ``answers`` are the changes of accuracies, by the names of their figures; ``speeds`` those of
    the dense model and of this one, which took turns. What was not measured is None.
    """

    plan_digest: str
    tensor_digest: str
    protocol_digest: str
    parameters: BeforeAfter
    ratio: Budget
    widths: tuple[tuple[int, int], ...]
    query_heads: int | None = ADDED
    compensated: Compensated | None = None
    file_bytes: int
    perplexity: dict[str, Perplexity]
    change: dict[str, Change]
    tasks: dict[str, TaskResult] | None = ADDED
    answers: dict[str, PairedDifference] | None = ADDED
    speeds: Speeds | None = ADDED
    experts: BeforeAfter | None = ADDED

    @classmethod
    def of(
        cls,
        plan: PruningPlan,
        record: EvaluationRecord,
        dense: EvaluationRecord,
        experts: int = 0,
    ) -> Measured:
        """The figures of the model that a plan made, with the changes against the dense one.

        ``experts`` are those of a block of the dense model, none by default.
        """
        kept = max(len(block.experts) for block in plan.blocks)
        pairs = paired_differences(dense, record)
        return cls(
            plan_digest=plan.digest,
            tensor_digest=record.tensor_digest,
            protocol_digest=record.protocol_digest,
            parameters=BeforeAfter(before=dense.parameters, after=record.parameters),
            ratio=plan.budget,
            widths=tuple(block.told_widths for block in plan.blocks),
            query_heads=plan.queries_per_group,
            compensated=Compensated.of(plan.compensated) if plan.compensated else None,
            file_bytes=record.file_bytes,
            experts=BeforeAfter(before=experts, after=kept) if experts else None,
            perplexity=record.perplexity,
            change={
                text: Change.of(dense.perplexity[text], found, pairs.get(f"nll.{text}"))
                for text, found in record.perplexity.items()
            },
        )

    def with_tasks(self, record: EvaluationRecord, dense: EvaluationRecord) -> Measured:
        """The same with the tasks of ``record`` and their changes against the dense model."""
        pairs = paired_differences(dense, record)
        answers = {name: pair for name, pair in pairs.items() if kind_name(name) in SHARES_OF_ROWS}
        return self.model_copy(update={"tasks": record.tasks, "answers": answers})


class Cost(Frozen):
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


class Outcome(Frozen):
    """What came of a combination: figures with their cost, or the reason of its refusal."""

    refusal: str | None = None
    measured: Measured | None = None
    cost: Cost = Cost()

    @property
    def digest(self) -> str:
        """The digest of all but seconds and memory, which no two runs share.

        Where nothing was compensated it is what it was when nothing could be.
        """
        value = self.model_dump(mode="json", exclude={"cost"})
        return digest_json(_without_compensated(value))


class Row(Outcome):
    """A combination and its outcome; ``directory`` is where its model was kept, if it was."""

    combination: Combination
    directory: str | None = None

    @classmethod
    def of(cls, combination: Combination, outcome: Outcome, directory: str | None = None) -> Row:
        """The row of a combination; a refused one has no directory."""
        kept = directory if outcome.measured else None
        return cls(combination=combination, directory=kept, **dict(outcome))


class ComparedModel(Frozen):
    """A dense model: where it came from, and its record under the common protocol."""

    source: str
    revision: str | None = None
    licence: str | None = None
    record: EvaluationRecord


class ComparedCalibration(Frozen):
    """A calibration text and the windows drawn from it, ``samples`` of ``seqlen`` tokens."""

    source: str
    sha256: str
    samples: int
    seqlen: int


class Comparison(Frozen):
    """Everything a comparison tells; models and calibrations by the names rows use."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    models: dict[str, ComparedModel]
    calibrations: dict[str, ComparedCalibration]
    rows: tuple[Row, ...]

    @property
    def texts(self) -> list[str]:
        """Names of the evaluation texts, in the order they were given."""
        first = next(iter(self.models.values()))
        return list(first.record.perplexity)

    @property
    def tasks(self) -> list[str]:
        """Names of the zero-shot tasks, in the order they were given."""
        first = next(iter(self.models.values()))
        return list(first.record.tasks)

    @property
    def digest(self) -> str:
        """The digest of the content; that of an older version is what it always was."""
        value = self.model_dump(mode="json")
        return digest_json(_as_version_1(value) if self.schema_version == 1 else value)


class Best(Frozen):
    """The combination that a selection picked, and why; ``value`` is the mean of its figure.

    The figure is the one that was ``minimised``, or else ``maximised``.
    """

    rows: tuple[Row, ...]
    minimised: str | None = ADDED
    maximised: str | None = ADDED
    value: float

    @property
    def figure(self) -> str:
        """The figure that it is the best by."""
        return self.minimised or self.maximised or ""


class Tracked(Frozen):
    """Where a comparison was told to MLflow, and the best of it; None where nothing qualified."""

    mlflow_run_id: str
    best: Best | None


class SweepSummary(Frozen):
    """One sweep from its first stage to its last; ``best`` is None where nothing qualified."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    run_name: str
    run_id: str
    mlflow_run_id: str
    status: str
    seconds: float
    stages: tuple[StageSummary, ...]
    comparison: Comparison
    best: Best | None
    report: str


def _as_version_1(comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison's JSON value as the first version wrote it."""
    rows = [_without_compensated(row) for row in comparison["rows"]]
    for row in rows:
        tried = row["combination"]
        del tried["alias"]
        tried["compensation"] = tried["compensation"]["name"]
    return {**comparison, "rows": rows}


def _without_compensated(outcome: dict[str, Any]) -> dict[str, Any]:
    """An outcome's JSON value without the field that says nothing was compensated."""
    measured = outcome["measured"]
    if measured is None or measured["compensated"] is not None:
        return outcome
    kept = {name: value for name, value in measured.items() if name != "compensated"}
    return {**outcome, "measured": kept}
