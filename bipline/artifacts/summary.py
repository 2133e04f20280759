"""RunSummary and Registration: what a finished pipeline run tells the user."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bipline.artifacts.digests import digest_json
from bipline.artifacts.plan import PruningPlan
from bipline.artifacts.record import EvaluationRecord, RecoveryRecord
from bipline.artifacts.store import Handle

StageStatus = Literal["completed", "cached", "reused"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Registration(_Frozen):
    """A registered version. ``reused``: this package digest had been registered before."""

    schema_version: Literal[1] = 1
    mlflow_run_id: str
    model_name: str
    version: str
    alias: str
    reused: bool

    @property
    def digest(self) -> str:
        """The digest of the registration's content."""
        return digest_json(self.model_dump(mode="json"))


class StageSummary(_Frozen):
    """One step of the run. ``cached``: ZenML skipped it; ``reused``: the store had its output."""

    name: str
    status: StageStatus
    seconds: float


class RunSummary(_Frozen):
    """A run from end to end. ``records`` holds dense, pruned and, where trained, recovered."""

    schema_version: Literal[1] = 1
    run_id: str
    run_name: str
    stages: tuple[StageSummary, ...]
    plan: PruningPlan
    records: dict[str, EvaluationRecord]
    recovery: RecoveryRecord | None
    package: Handle
    report: str
    registration: Registration
