"""RunSummary: what a pipeline run did, for the command line, ``--json`` and tests."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, RecoveryRecord

SCHEMA_VERSION: Literal[1] = 1
StageStatus = Literal["completed", "cached", "reused"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Registration(_Frozen):
    """A version of a registered model. ``reused``: the same package was registered before."""

    mlflow_run_id: str
    model_name: str
    version: str
    alias: str
    reused: bool


class StageSummary(_Frozen):
    """One stage: ``cached`` was skipped by the pipeline, ``reused`` was found in the Store."""

    name: str
    status: StageStatus
    seconds: float


class RunSummary(_Frozen):
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

    def stage(self, name: str) -> StageSummary:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)
