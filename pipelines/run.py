"""Run the compress pipeline on the local stack and say what happened.

ZenML is imported only after this process was pointed at the run's own state (see
:mod:`pipelines.local_stack`), so nothing here may import it at the top.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.errors import BiplineError, EnvironmentFailure
from bipline.base.progress import note
from bipline.face.settle import settle
from bipline.settings.compress import CompressConfig
from bipline.storage.directory import locked
from bipline.values.summary import RunSummary, StageSummary
from pipelines.local_stack import activate_local_stack, close_tracking, isolate
from pipelines.provenance import provenance

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, StepRunResponse


def run_compress(config: CompressConfig, reuse: bool = True) -> RunSummary:
    """Run every stage that is not known already; the summary of the run.

    ``reuse=False`` asks the Store alone what is known, and not ZenML's cache. That is also what
    happens when the cache answered with a directory that was deleted since.
    Raises what the failing stage raised, so that an error keeps its exit code.
    """
    config, reason = settle(config)
    if reason:
        note(reason)
    state = Path(config.state).absolute()
    isolate(state)
    with (
        database_failures(state),
        locked(state, f"{state}: another run is using this state folder"),
    ):
        activate_local_stack(state)
        return _run_again_if_gone(config, reuse)


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


def _run_again_if_gone(config: CompressConfig, reuse: bool) -> RunSummary:
    from materializers.handle import StoredGone

    try:
        return _summary(_run_pipeline(config, reuse))
    except StoredGone as gone:
        if not reuse:
            raise
        note(f"{gone}; asking the Store for every stage")
        return _summary(_run_pipeline(config, reuse=False))


def _run_pipeline(config: CompressConfig, reuse: bool) -> str:
    """Run the pipeline to its end; the name of the run."""
    from pipelines.compress import compress

    name = f"compress-{datetime.now(UTC):%Y%m%dT%H%M%S-%fZ}"
    try:
        compress.with_options(run_name=name, enable_cache=None if reuse else False)(config)
    except BaseException as error:
        close_tracking()
        raise original(error) from error.__cause__
    finally:
        _log_provenance(name)
    return name


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


def _summary(name: str) -> RunSummary:
    from steps.tracked import seconds_of, status_of, step_runs

    run = _run(name)
    if run is None:
        raise RuntimeError(f"ZenML does not know the run {name} that has just ended")
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
        run_name=run.name,
        run_id=str(run.id),
        status=run.status.value,
        seconds=_seconds(run),
        stages=tuple(
            StageSummary(name=step.name, status=status_of(step), seconds=seconds_of(step))
            for step in steps.values()
        ),
        plan=_output(steps["allocate"], "plan"),
        records=records,
        recovery=recovery,
        package=package,
        registration=_output(steps["promote"], "registration"),
        report=str(Path(package.location) / "report.html"),
    )


def _output(step: StepRunResponse, name: str) -> Any:
    return step.outputs[name][0].load()


def _seconds(run: PipelineRunResponse) -> float:
    if not (run.start_time and run.end_time):
        return 0.0
    return round((run.end_time - run.start_time).total_seconds(), 3)
