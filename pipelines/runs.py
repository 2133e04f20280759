"""What ran on a stack, from ZenML and MLflow; nothing is started, and ZenML is imported late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.errors import InvalidInput
from bipline.delivery.registries.mlflow_run import FAILURE_TAG
from bipline.delivery.registries.mlflow_service import mlflow_library, tracking_uri, translated
from bipline.settings.stack import StackSettings
from bipline.storage.locks import locked
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

    Raises InvalidInput for a folder where nothing ran, and for a run that is not known.
    """
    with _reading(settings) as address:
        from zenml.client import Client

        wanted = {} if name is None else {"name": name}
        found = Client().list_pipeline_runs(size=MOST_RUNS, sort_by="desc:created", **wanted).items
        if name is not None and not found:
            raise InvalidInput(f"run {name!r}: not known here; `bipline runs` lists those that are")
        busy = settings.state is None or _is_busy(Path(settings.state))
        runs = tuple(_told(each, settings, address, busy) for each in found)
    return PipelineRuns(stack=settings.state or settings.stack or "the active stack", runs=runs)


@contextmanager
def _reading(settings: StackSettings) -> Iterator[str]:
    """The stack of these settings, to be asked; gives where its runs are tracked."""
    if settings.state is None:
        with own_stack(settings.stack, None) as address:
            yield address
        return
    state = Path(settings.state).absolute()
    if not (state / "zenml").is_dir():
        raise InvalidInput(f"{settings.state}: nothing ran in this state folder")
    with isolated(state), database_failures(f"{state}"):
        yield tracking_uri(state)


def _told(
    run: PipelineRunResponse, settings: StackSettings, address: str, busy: bool
) -> PipelineRun:
    from steps.stage import stage_summary, step_runs

    status, began = run.status.value, run.start_time or run.created
    if not run.status.is_finished and not busy:
        status = "killed"
    stages = []
    for name, step in step_runs(run.id).items():
        ended = step.status.is_successful
        seconds = stage_summary(step).seconds if ended else None
        told = stage_summary(step).status if ended else step.status.value
        stages.append(RunStage(name=name, status=told, seconds=seconds))
    return PipelineRun(
        name=run.name,
        pipeline=run.pipeline.name if run.pipeline else "",
        status=status,
        began=began.isoformat(timespec="seconds"),
        seconds=round((run.end_time - began).total_seconds(), 1) if run.end_time else None,
        reason="" if run.status.is_successful else _reason(address, run.name),
        log=_log(settings, run.name),
        stages=tuple(stages),
    )


def _reason(address: str, name: str) -> str:
    """Why a run failed, as MLflow was told; empty for names that no run of ours has."""
    if "'" in name:
        return ""
    with translated("MLflow"):
        client = mlflow_library().MlflowClient(tracking_uri=address)
        experiments = [each.experiment_id for each in client.search_experiments()]
        found: list[Any] = client.search_runs(
            experiments, f"tags.mlflow.runName = '{name}'", max_results=1
        )
    return str(found[0].data.tags.get(FAILURE_TAG, "")) if found else ""


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


def _is_busy(state: Path) -> bool:
    """Whether a run is going on in a state folder."""
    try:
        with locked(state, "in use"):
            return False
    except InvalidInput:
        return True
