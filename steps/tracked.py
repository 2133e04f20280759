"""What the tracker is told about a run beside its figures: seconds per stage."""

from __future__ import annotations

from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import StepRunResponse

from bipline.values.summary import StageStatus


def step_runs(run_id: UUID) -> list[StepRunResponse]:
    """The steps of a pipeline run in the order they started."""
    found = Client().list_run_steps(pipeline_run_id=run_id, size=100, hydrate=True).items
    return sorted(found, key=lambda run: run.created)


def seconds_of(run: StepRunResponse) -> float:
    """How long a step took, everything ZenML did around it included; 0 when it was cached."""
    if run.status == ExecutionStatus.CACHED or not (run.start_time and run.end_time):
        return 0.0
    return round((run.end_time - run.start_time).total_seconds(), 3)


def status_of(run: StepRunResponse) -> StageStatus:
    """Whether a step was skipped by ZenML, answered from the Store, or run."""
    if run.status == ExecutionStatus.CACHED:
        return "cached"
    return "reused" if run.run_metadata.get("reused") else "completed"


def stage_seconds(run_id: UUID) -> tuple[dict[str, float], list[str]]:
    """Seconds of every finished step as metrics, and the steps that were not run again."""
    finished = [run for run in step_runs(run_id) if run.end_time]
    seconds = {f"stage_seconds.{run.name}": seconds_of(run) for run in finished}
    return seconds, [run.name for run in finished if status_of(run) != "completed"]
