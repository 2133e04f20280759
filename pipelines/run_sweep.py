"""Run the sweep pipeline on the local stack, pick the best row, and say what happened.

Like :mod:`pipelines.run`: ZenML is imported only after this process was pointed at the run's own
state.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bipline.base.progress import note
from bipline.delivery.registries.mlflow import prepare_tracking
from bipline.settings.sweep import SweepConfig
from bipline.storage.directory import locked
from bipline.values.comparison import SweepSummary
from bipline.values.summary import StageSummary
from pipelines.local_stack import activate_local_stack, close_tracking, isolate
from pipelines.run import (
    _log_provenance,
    _output,
    _run,
    _seconds,
    database_failures,
    original,
)

if TYPE_CHECKING:
    from uuid import UUID

    from zenml.models import StepRunResponse

# ZenML names the experiment after the pipeline.
EXPERIMENT = "sweep"
PAGE = 1000


def run_sweep(config: SweepConfig, reuse: bool = True) -> SweepSummary:
    """Run every step that is not known already; the comparison and the best row.

    ``reuse=False`` asks the Store alone what is known, and not ZenML's cache. That is also what
    happens when the cache answered with a directory that was deleted since.
    Raises what the failing step raised, so that an error keeps its exit code.
    """
    state = Path(config.state).absolute()
    isolate(state)
    with (
        database_failures(state),
        locked(state, f"{state}: another run is using this state folder"),
    ):
        activate_local_stack(state)
        prepare_tracking(state, EXPERIMENT)
        return _run_again_if_gone(config, reuse)


def _run_again_if_gone(config: SweepConfig, reuse: bool) -> SweepSummary:
    from materializers.handle import StoredGone

    try:
        return _summary(_run_pipeline(config, reuse))
    except StoredGone as gone:
        if not reuse:
            raise
        note(f"{gone}; asking the Store for every step")
        return _summary(_run_pipeline(config, reuse=False))


def _run_pipeline(config: SweepConfig, reuse: bool) -> str:
    """Run the pipeline to its end; the name of the run."""
    from pipelines.sweep import sweep

    name = f"sweep-{datetime.now(UTC):%Y%m%dT%H%M%S-%fZ}"
    try:
        sweep.with_options(run_name=name, enable_cache=None if reuse else False)(config)
    except BaseException as error:
        close_tracking()
        raise original(error) from error.__cause__
    finally:
        _log_provenance(name)
    return name


def _summary(name: str) -> SweepSummary:
    from steps.tracked import seconds_of, status_of

    run = _run(name)
    if run is None:
        raise RuntimeError(f"ZenML does not know the run {name} that has just ended")
    steps = _steps(run.id)
    named = {step.name: step for step in steps}
    comparison = _output(named["collect"], "comparison")
    tracked = _output(named["track"], "tracked")
    return SweepSummary(
        run_name=run.name,
        run_id=str(run.id),
        mlflow_run_id=tracked.mlflow_run_id,
        status=run.status.value,
        seconds=_seconds(run),
        stages=tuple(
            StageSummary(name=step.name, status=status_of(step), seconds=seconds_of(step))
            for step in steps
        ),
        comparison=comparison,
        best=tracked.best,
        report=str(Path(_output(named["collect"], "report").location) / "comparison.html"),
    )


def _steps(run_id: UUID) -> list[StepRunResponse]:
    """All steps of a run in the order they started: a sweep may have more than a page holds."""
    from zenml.client import Client

    steps: list[StepRunResponse] = []
    page = 1
    while True:
        found = Client().list_run_steps(pipeline_run_id=run_id, size=PAGE, page=page, hydrate=True)
        steps += found.items
        if page >= found.total_pages:
            return sorted(steps, key=lambda step: step.created)
        page += 1
