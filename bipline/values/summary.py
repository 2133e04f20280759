"""What a command did, for the screen, ``--json``, the API and tests."""

from __future__ import annotations

from typing import Any, Literal

from bipline.storage.store import Handle
from bipline.values.frozen import Frozen
from bipline.values.plan import PruningPlan
from bipline.values.precision import DtypeChoice
from bipline.values.promotion import OtherRegistry
from bipline.values.record import EvaluationRecord
from bipline.values.recovery import RecoveryRecord
from bipline.values.speed import ADDED
from bipline.values.verdict import Verdict

SCHEMA_VERSION: Literal[1] = 1
# Version 1 called a compensation's name its form.
PRUNE_SCHEMA_VERSION: Literal[2] = 2
# Stages of a pipeline that are not skipped, so that changed bytes and lost versions are seen.
ALWAYS_RUN = {"resolve", "check_formats", "promote"}
StageStatus = Literal["completed", "cached", "reused"]


class BeforeAfter(Frozen):
    """A count of the dense model and of the smaller one."""

    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The share that is left."""
        return self.after / self.before


class Seconds(Frozen):
    """Seconds by stage, those that were found in a Store as 0, and all together."""

    stage: dict[str, float]
    total: float


class PruneSummary(Frozen):
    """What ``bipline prune`` made: sizes, ratio, seconds beside their floor, memory in bytes.

    ``widths`` are attention groups and FFN channels by block, ``query_heads`` those that each group
    keeps where some of them went, ``dtype_choice`` what dtype auto chose; ``floor_seconds`` is None
    where no stage took long enough to measure one, or an earlier run did a part.
    """

    schema_version: Literal[2] = PRUNE_SCHEMA_VERSION
    model: str
    out: str
    digest: str
    plan_digest: str
    criterion: str
    allocation: str
    layout: str
    compensation: dict[str, Any]
    widths: tuple[tuple[int, int], ...]
    query_heads: int | None = ADDED
    parameters: BeforeAfter
    block_parameters: BeforeAfter
    ratio: dict[str, Any]
    notes: tuple[str, ...]
    dtype_choice: DtypeChoice | None = ADDED
    seconds: Seconds
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    peak_device_bytes: int
    floor_seconds: float | None
    floor_seconds_by_stage: dict[str, float]
    rates: dict[str, float]


class Registration(Frozen):
    """A version of a registered model. ``reused``: the same package was registered before.

    ``alias`` is the one that it got. With a gate ``verdict`` is what that said, and ``refusal`` why
    the version has not the alias that was asked for. ``also`` is what came of other registries.
    """

    mlflow_run_id: str
    model_name: str
    version: str
    alias: str
    reused: bool
    verdict: Verdict | None = None
    refusal: str | None = None
    also: tuple[OtherRegistry, ...] = ()


class StageSummary(Frozen):
    """One stage: ``cached`` was skipped by the pipeline, ``reused`` was found in the Store."""

    name: str
    status: StageStatus
    seconds: float


class RunSummary(Frozen):
    """One compress run from its first stage to its last."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run_name: str
    run_id: str
    status: str
    seconds: float
    stages: tuple[StageSummary, ...]
    plan: PruningPlan
    records: dict[str, EvaluationRecord]
    recovery: RecoveryRecord | None
    package: Handle
    registration: Registration
    report: str

    @property
    def unchanged(self) -> bool:
        """Whether all was known: the same bytes, configuration, and meaning of the code."""
        made = {stage.name for stage in self.stages if stage.status == "completed"}
        return self.registration.reused and made <= ALWAYS_RUN

    def stage(self, name: str) -> StageSummary:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)


class ModelOutcome(Frozen):
    """How the run of one of several models ended: its exit code, why if not well, what it made."""

    model: str
    name: str
    exit_code: int
    reason: str = ""
    summary: RunSummary | None = None

    @property
    def ended(self) -> str:
        """The end in a word."""
        if self.exit_code == 0:
            return "unchanged" if self.summary and self.summary.unchanged else "done"
        return "refused" if self.summary else "failed"


class SeveralSummary(Frozen):
    """Several models of one configuration, in its order, each with a run of its own."""

    schema_version: Literal[1] = SCHEMA_VERSION
    models: tuple[ModelOutcome, ...]

    @property
    def failed(self) -> tuple[ModelOutcome, ...]:
        """Those that did not end well."""
        return tuple(each for each in self.models if each.exit_code)

    @property
    def exit_code(self) -> int:
        """The worst of all: the highest, of which 3 says that a retry may help."""
        return max(each.exit_code for each in self.models)
