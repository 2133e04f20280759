"""What the steps share: the Store beside ZenML's artifacts, and ZenML's cache kept in line with it.

ZenML skips a step whose parameters, inputs' content hashes and fingerprint it has seen. Where
it does not, the Store answers with the finished directory of the same stage key. The first is
quick; the second is exact, and holds when ZenML's database is new or a run was killed.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

from pydantic import BeforeValidator
from zenml import log_metadata, step
from zenml.client import Client
from zenml.config.cache_policy import CachePolicy
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse, StepRunResponse

import materializers  # noqa: F401  (its import tells ZenML how our types are stored)
from bipline.settings.base import tuples
from bipline.settings.line import ComputeSettings
from bipline.stages.precision import settled
from bipline.stages.stage import Context, StageReport, ended_at
from bipline.storage.store import Handle, Store, open_store
from bipline.values.lineage import RunLineage, StageLineage
from bipline.values.resolution import Resolution
from bipline.values.summary import StageStatus, StageSummary

Value = TypeVar("Value")
# In the name of a step that has a share of another's work.
PART = "_part_"
# A parameter. It comes back from ZenML's database as JSON, where a tuple is a list; the strict
# settings accept tuples only.
Parameter = Annotated[Value, BeforeValidator(tuples)]


def store() -> Store:
    """The Store of the active stack, beside ZenML's own artifacts."""
    return open_store(f"{Client().active_stack.artifact_store.path}/bipline")


def tracking_uri() -> str | None:
    """Where the stack's tracker tells runs; its credentials are this process's from here on."""
    tracker = Client().active_stack.experiment_tracker
    if tracker is None:
        return None
    tracker.configure_mlflow()
    return str(tracker.get_tracking_uri())


def context(compute: ComputeSettings | None = None, seed: int = 0) -> Context:
    """What a step hands to its stage; what the stage tells is logged as the step's metadata."""
    return Context(store(), compute or ComputeSettings(), seed, report=_log)


def settled_context(
    compute: ComputeSettings, seed: int, model: Resolution, calibration: Handle | None
) -> Context:
    """The same for a stage that runs windows, with its dtype named; logged where auto chose it."""
    here = context(compute, seed)
    quiet = settled(replace(here, report=lambda report: None), model.model, calibration)
    if quiet.dtype_choice:
        log_metadata({"dtype": quiet.dtype_choice.dtype, "dtype_reason": quiet.dtype_choice.reason})
    return replace(quiet, report=here.report)


def cached_by(fingerprint: str) -> Any:
    """A step cached by parameters, content of inputs, and the result of a function of this name.

    The step's own source is left out: an edited comment changes nothing, and an edit that does
    changes the fingerprint.
    """
    policy = CachePolicy(
        include_step_code=False, include_artifact_ids=False, cache_func=fingerprint
    )
    return step(cache_policy=policy)


def _log(report: StageReport) -> None:
    log_metadata(
        {
            "stage_key": report.key,
            "reused": report.cost is None,
            "work_seconds": round(report.seconds, 3),
            "output_digest": report.digest,
        }
    )


def step_runs(run_id: UUID) -> dict[str, StepRunResponse]:
    """The steps of a pipeline run by name, in the order they started."""
    found = Client().list_run_steps(pipeline_run_id=run_id, size=100, hydrate=True).items
    return {step.name: step for step in sorted(found, key=lambda step: step.created)}


def evaluated_at(run_id: UUID) -> datetime | None:
    """When the oldest of a run's records was measured; None where nobody kept that of each."""
    found: list[datetime | None] = []
    for name, each in step_runs(run_id).items():
        if name.startswith("evaluate"):
            key = str(each.run_metadata.get("stage_key", ""))
            stage = "evaluate_part" if PART in name else "evaluate"
            found.append(ended_at(store(), stage, key))
    times = [time for time in found if time is not None]
    return min(times) if times and len(times) == len(found) else None


def run_lineage(run: PipelineRunResponse, code: Mapping[str, str]) -> RunLineage:
    """When and where a run's finished steps ran, by which keys; ``code`` is what ran."""
    steps = {name: each for name, each in step_runs(run.id).items() if each.end_time}
    now = datetime.now(UTC).replace(microsecond=0)
    return RunLineage(
        run_name=run.name,
        run_id=str(run.id),
        host=platform.node(),
        started=_utc(run.start_time) or now,
        ended=now,
        code=dict(code),
        stages={name: stage_lineage(each) for name, each in steps.items()},
    )


def stage_lineage(step: StepRunResponse) -> StageLineage:
    """How a step ended, when, and by which key, as ZenML keeps it."""
    told, summary = step.run_metadata, stage_summary(step)
    names = {"key": "stage_key", "digest": "output_digest"}
    return StageLineage(
        status=summary.status,
        **{field: str(told[name]) for field, name in names.items() if name in told},
        seconds=summary.seconds,
        ended=_utc(step.end_time),
    )


def _utc(moment: datetime | None) -> datetime | None:
    """ZenML's times are UTC and do not say so."""
    return moment and moment.replace(tzinfo=UTC, microsecond=0)


def stage_summary(step: StepRunResponse) -> StageSummary:
    """Whether a step was skipped by ZenML, answered from the Store, or run, and its seconds.

    They are with everything that ZenML did around it, and 0 where it was skipped.
    """
    if step.status == ExecutionStatus.CACHED:
        return StageSummary(name=step.name, status="cached", seconds=0.0)
    ended = step.start_time and step.end_time
    seconds = (step.end_time - step.start_time).total_seconds() if ended else 0.0
    status: StageStatus = "reused" if step.run_metadata.get("reused") else "completed"
    return StageSummary(name=step.name, status=status, seconds=round(seconds, 3))


def output(steps: Mapping[str, StepRunResponse], step: str, name: str) -> Any:
    """What a step made under a name; None where the step was not run."""
    return steps[step].outputs[name][0].load() if step in steps else None
