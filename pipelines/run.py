"""Run a pipeline on the local stack and say what happened.

ZenML is imported only after this process was pointed at the run's own state (see
:mod:`pipelines.local_stack`), so nothing here may import it at the top.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.progress import note
from bipline.compression.auto import settled_settings
from bipline.delivery.registries.mlflow import prepare_tracking
from bipline.settings.compress import CompressSettings
from bipline.settings.sweep import SweepSettings
from bipline.storage.directory import locked
from bipline.storage.store import StoredGone
from bipline.values.comparison import SweepSummary
from bipline.values.summary import RunSummary, StageSummary
from pipelines.local_stack import activate_local_stack, close_tracking, isolated
from pipelines.provenance import provenance

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, StepRunResponse


def run_compress(settings: CompressSettings, reuse: bool = True) -> RunSummary:
    """Run every stage that is not known already; the summary of the run.

    ``reuse=False`` asks the Store alone what is known, and not ZenML's cache. That is also what
    happens when the cache answered with a directory that was deleted since.
    Raises what the failing stage raised, so that an error keeps its exit code.
    """
    settings, reason = settled_settings(settings)
    if reason:
        note(reason)

    def start(options: dict[str, Any]) -> None:
        from pipelines.compress import compress

        compress.with_options(**options)(settings)

    with local_stack(Path(settings.state), "compress"):
        return run("compress", start, compress_summary, reuse)


def run_sweep(settings: SweepSettings, reuse: bool = True) -> SweepSummary:
    """Run every step that is not known already; the comparison and the best row.

    As :func:`run_compress` does.
    """

    def start(options: dict[str, Any]) -> None:
        from pipelines.sweep import sweep

        sweep.with_options(**options)(settings)

    with local_stack(Path(settings.state), "sweep"):
        return run("sweep", start, sweep_summary, reuse)


@contextmanager
def local_stack(place: Path, experiment: str) -> Iterator[None]:
    """The isolated stack of a state folder, held by this process for the length of the block."""
    state = place.absolute()
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{state}: no folder for a run's state: {error.strerror}") from None
    with (
        isolated(state),
        database_failures(state),
        locked(state, f"{state}: another run is using this state folder"),
    ):
        activate_local_stack(state)
        # ZenML names the experiment after the pipeline.
        prepare_tracking(state, experiment)
        yield


def run(
    name: str,
    start: Callable[[dict[str, Any]], None],
    summary: Callable[[PipelineRunResponse], Any],
    reuse: bool,
) -> Any:
    """Run a pipeline to its end, and once more where the cache answers with what is gone."""
    try:
        return summary(_started(name, start, reuse))
    except StoredGone as gone:
        if not reuse:
            raise
        note(f"{gone}; asking the Store for every stage")
        return summary(_started(name, start, reuse=False))


def _started(
    pipeline: str, start: Callable[[dict[str, Any]], None], reuse: bool
) -> PipelineRunResponse:
    """One run of a pipeline, as ZenML tells it afterwards."""
    name = f"{pipeline}-{datetime.now(UTC):%Y%m%dT%H%M%S-%fZ}"
    try:
        start({"run_name": name, "enable_cache": None if reuse else False})
    except BaseException as error:
        close_tracking()
        raise original(error) from error.__cause__
    finally:
        _log_provenance(name)
    found = _run(name)
    if found is None:
        raise RuntimeError(f"ZenML does not know the run {name} that has just ended")
    return found


@contextmanager
def database_failures(state: Path) -> Iterator[None]:
    """Raise EnvironmentFailure where ZenML's database fails: disk full, locked, unreadable."""
    try:
        yield
    except Exception as error:
        failure = _in_chain(error, sqlite3.Error)
        if failure is None or isinstance(error, BiplineError):
            raise
        raise EnvironmentFailure(
            f"ZenML's database below {state} failed: {failure}; finished stages are kept, "
            "make room and run again"
        ) from error


def original(error: BaseException) -> BaseException:
    """The error of this project that another was raised from, or the error itself.

    What ZenML makes of a signal is an interruption, not a fault.
    """
    from zenml.exceptions import RunInterruptedException

    if _in_chain(error, RunInterruptedException):
        return KeyboardInterrupt()
    return _in_chain(error, BiplineError) or error


def _in_chain(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first error of a kind among an error and those it was raised from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__
    return cause


def _log_provenance(name: str) -> None:
    """A failed run is told apart by its code too; one that never began has nothing to log to."""
    from zenml import log_metadata

    if _run(name) is not None:
        log_metadata(metadata=dict(provenance()), run_id_name_or_prefix=name)


def _run(name: str) -> PipelineRunResponse | None:
    from zenml.client import Client

    found = Client().list_pipeline_runs(name=name, size=1).items
    return found[0] if found else None


def compress_summary(run: PipelineRunResponse) -> RunSummary:
    """What a compress run made."""
    from steps.stage import store
    from steps.tracked import step_runs

    steps = {step.name: step for step in step_runs(run.id)}
    recovery = _output(steps["recover"], "recovery_record") if "recover" in steps else None
    records = {
        "dense": _output(steps["evaluate_dense"], "dense_record"),
        "pruned": _output(steps["evaluate_pruned"], "record"),
    }
    if recovery and recovery.accepted:
        records["recovered"] = _output(steps["evaluate_recovered"], "record")
    package = _output(steps["export"], "package")
    return RunSummary(
        **_told(run, list(steps.values())),
        plan=_plan(steps),
        records=records,
        recovery=recovery,
        package=package,
        registration=_output(steps["promote"], "registration"),
        report=str(store().open(package) / "report.html"),
    )


def sweep_summary(run: PipelineRunResponse) -> SweepSummary:
    """What a sweep came to."""
    from steps.stage import store
    from steps.tracked import step_runs

    steps = step_runs(run.id)
    named = {step.name: step for step in steps}
    tracked = _output(named["track"], "tracked")
    report = store().open(_output(named["collect"], "report"))
    return SweepSummary(
        **_told(run, steps),
        mlflow_run_id=tracked.mlflow_run_id,
        comparison=_output(named["collect"], "comparison"),
        best=tracked.best,
        report=str(report / "comparison.html"),
    )


def _told(run: PipelineRunResponse, steps: list[StepRunResponse]) -> dict[str, Any]:
    """What any run tells: its name, how it ended, and its steps."""
    from steps.tracked import seconds_of, status_of

    return {
        "run_name": run.name,
        "run_id": str(run.id),
        "status": run.status.value,
        "seconds": _seconds(run),
        "stages": tuple(
            StageSummary(name=step.name, status=status_of(step), seconds=seconds_of(step))
            for step in steps
        ),
    }


def _plan(steps: dict[str, StepRunResponse]) -> Any:
    """The plan as it was asked for, or as it was given."""
    if "given_corrections" in steps:
        return _output(steps["given_corrections"], "realised_plan")
    return _output(steps["allocate" if "allocate" in steps else "given_plan"], "plan")


def _output(step: StepRunResponse, name: str) -> Any:
    return step.outputs[name][0].load()


def _seconds(run: PipelineRunResponse) -> float:
    if not (run.start_time and run.end_time):
        return 0.0
    return round((run.end_time - run.start_time).total_seconds(), 3)
