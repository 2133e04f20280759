"""What ran on a stack, from ZenML and MLflow; nothing is started, and ZenML is imported late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bipline.base.errors import InvalidInput
from bipline.delivery.registries.mlflow_run import Tracking
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.settings.stack import StackSettings
from bipline.storage.locks import is_locked
from bipline.values.pipeline_run import PipelineRun, PipelineRuns, RunStage
from pipelines.local_stack import isolated
from pipelines.own_stack import own_stack
from pipelines.run import database_failures

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

MOST_RUNS = 50
STAMP = "%Y%m%dT%H%M%S"


def list_runs(settings: StackSettings, name: str | None = None) -> PipelineRuns:
    """The last runs of a stack, or one by its name with its stages.

    Raises InvalidInput as :func:`check_state`, and for a run that is not known.
    """
    with reading(settings) as address:
        from zenml.client import Client

        wanted = {} if name is None else {"name": name}
        found = Client().list_pipeline_runs(size=MOST_RUNS, sort_by="desc:created", **wanted).items
        if name is not None and not found:
            raise InvalidInput(f"run {name!r}: not known here; `bipline runs` lists those that are")
        busy = settings.state is None or is_locked(Path(settings.state))
        runs = tuple(_told(each, settings, address, busy) for each in found)
    return PipelineRuns(stack=settings.state or settings.stack or "the active stack", runs=runs)


def check_state(settings: StackSettings) -> None:
    """Raise InvalidInput for a state folder where nothing ran."""
    if settings.state is not None and not (Path(settings.state) / "zenml").is_dir():
        raise InvalidInput(f"{settings.state}: nothing ran in this state folder")


@contextmanager
def reading(settings: StackSettings) -> Iterator[str]:
    """The stack of these settings, to be asked; gives where its runs are tracked.

    Raises as :func:`check_state`.
    """
    if settings.state is None:
        with own_stack(settings.stack, None) as address:
            yield address
        return
    check_state(settings)
    state = Path(settings.state).absolute()
    with isolated(state), database_failures(f"{state}"):
        yield tracking_uri(state)


def _told(
    run: PipelineRunResponse, settings: StackSettings, address: str, busy: bool
) -> PipelineRun:
    from steps.stage import stage_summary, step_runs

    status, began = run.status.value, run.start_time or run.created
    pipeline = run.pipeline.name if run.pipeline else ""
    if not run.status.is_finished and not busy:
        status = "killed"
    stages = []
    for name, step in step_runs(run.id).items():
        if step.status.is_successful:
            ended = stage_summary(step)
            stages.append(RunStage(name=name, status=ended.status, seconds=ended.seconds))
        else:
            stages.append(RunStage(name=name, status=step.status.value, seconds=None))
    return PipelineRun(
        name=run.name,
        pipeline=pipeline,
        status=status,
        began=began.isoformat(timespec="seconds"),
        seconds=round((run.end_time - began).total_seconds(), 1) if run.end_time else None,
        reason="" if run.status.is_successful else Tracking(address, pipeline, run.name).failure(),
        log=_log(settings, run.name),
        stages=tuple(stages),
    )


def _log(settings: StackSettings, name: str) -> str | None:
    """The log of the command that began last before the run, which has its time in its name."""
    pipeline, _, stamp = name.partition("-")
    try:
        began = datetime.strptime(stamp.partition("-")[0], STAMP)
    except ValueError:
        return None
    logs = sorted((settings.folder / "logs").glob(f"{pipeline}-*Z.log"))
    before = [path for path in logs if path.stem.partition("-")[2] <= f"{began:{STAMP}}Z"]
    return str(before[-1]) if before else None
