"""What ZenML tells an audit of runs: their steps' keys and digests, and the artifacts as stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from pydantic import BaseModel

from bipline.audits.orchestrated import ToldArtifact, ToldRun, comparable
from bipline.base.errors import Refused
from bipline.values.lineage import StageLineage

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, StepRunResponse


def told_runs(run_ids: Sequence[str]) -> dict[str, ToldRun]:
    """Runs by their ids, of the ZenML that this process is pointed at."""
    found = {run_id: _found(run_id) for run_id in run_ids}
    return {run_id: _told(run) for run_id, run in found.items() if run is not None}


def _found(run_id: str) -> PipelineRunResponse | None:
    from zenml.client import Client

    try:
        return Client().get_pipeline_run(str(UUID(run_id)), allow_name_prefix_match=False)
    except (KeyError, ValueError):
        return None


def _told(run: PipelineRunResponse) -> ToldRun:
    from steps.stage import step_runs

    steps = step_runs(run.id)
    promote = steps.get("promote")
    registration = dict(promote.run_metadata).get("registration") if promote else None
    return ToldRun(
        run_name=run.name,
        status=run.status.value,
        stages={name: _stage(step) for name, step in steps.items()},
        artifacts=[each for step in steps.values() for each in _artifacts(step)],
        registration=registration if isinstance(registration, dict) else {},
    )


def _stage(step: StepRunResponse) -> StageLineage:
    from steps.stage import stage_lineage

    told = stage_lineage(step)
    if step.status.is_successful:
        return told
    return told.model_copy(update={"status": step.status.value})


def _artifacts(step: StepRunResponse) -> Iterator[ToldArtifact]:
    for name, versions in step.outputs.items():
        for version in versions:
            yield _artifact(step.name, name, version.load)


def _artifact(step: str, name: str, load: Callable[[], object]) -> ToldArtifact:
    """An output, loaded by its materializer, which holds it to the digest in the database."""
    try:
        value = load()
    except (Refused, ValueError) as error:
        return ToldArtifact(step, name, problem=_reason(error))
    except Exception as error:
        # Whatever a store raises that is not reached any more.
        return ToldArtifact(step, name, unread=f"cannot be read: {_reason(error)}")
    return ToldArtifact(step, name, comparable(value) if isinstance(value, BaseModel) else "")


def _reason(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"
