"""Run a pipeline on the local stack and say what happened.

ZenML is imported only after this process was pointed at the run's own state (see
:mod:`pipelines.local_stack`), so nothing here may import it at the top.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.progress import note
from bipline.delivery.notices import about
from bipline.delivery.registries.mlflow_run import Tracking
from bipline.delivery.registries.mlflow_service import (
    WORK_LIMITS,
    limited,
    prepare_experiment,
    prepare_tracking,
    probe,
    translated,
)
from bipline.settings.audit import AuditSettings
from bipline.settings.base import flattened
from bipline.settings.compress import CompressSettings, PromoteSettings
from bipline.settings.notify import NotifySettings
from bipline.settings.stack import WHERE, StackSettings
from bipline.settings.sweep import SweepSettings
from bipline.stages.settled import settled
from bipline.storage.locks import locked
from bipline.storage.store import StoredGone
from bipline.values.audit import RegistryAudit
from bipline.values.comparison import SweepSummary
from bipline.values.summary import RunSummary
from pipelines.local_stack import activate_local_stack, close_tracking, isolated
from pipelines.own_stack import own_stack
from pipelines.provenance import provenance
from pipelines.remote import placed_options, raise_failure

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse


def run_compress(settings: CompressSettings) -> RunSummary:
    """Run every stage that is not known already; the summary of the run.

    Raises what the failing stage raised, so that an error keeps its exit code.
    """
    settings, reason = settled(settings)
    if reason:
        note(reason)
    return RunSummary(**_run("compress", settings))


def run_sweep(settings: SweepSettings) -> SweepSummary:
    """Run every step that is not known already; the comparison and the best row.

    As :func:`run_compress` does.
    """
    return SweepSummary(**_run("sweep", settings))


def run_audit(settings: AuditSettings) -> RegistryAudit:
    """Audit every version that an alias points at, a step each, and collect them."""
    found: RegistryAudit = _run("audit", settings)["audit"]
    return found


def _run(name: str, settings: StackSettings) -> dict[str, Any]:
    """Run a pipeline to its end, and tell what came of it.

    Where ZenML's cache answers with a directory that was deleted since, the Store alone is asked
    what is known. ZenML is not told whom a webhook reaches.
    """
    settings = settings.model_copy(update={"notify": NotifySettings()})
    with stack_of(settings, name) as address:
        try:
            return _ended(name, settings, address)
        except StoredGone as gone:
            note(f"{gone}; asking the Store for every stage")
            return _ended(name, settings, address, enable_cache=False)


@contextmanager
def stack_of(settings: StackSettings, experiment: str) -> Iterator[str]:
    """The stack that a run's settings mean, with its experiment; gives the MLflow it tells.

    Raises before any work: InvalidInput for a stack that cannot be used, EnvironmentFailure where
    a server does not answer.
    """
    promote = settings.promote if isinstance(settings, CompressSettings) else PromoteSettings()
    if settings.state is not None:
        opened = local_stack(Path(settings.state), experiment, promote.tracking_uri)
    else:
        opened = _own_stack(settings.stack, promote.tracking_uri)
    with opened as address:
        if settings.state is None or promote.tracking_uri:
            prepare_experiment(address, experiment)
        if promote.registry_uri:
            probe(promote.registry_uri)
        with limited(WORK_LIMITS), tracker_failures():
            yield address


@contextmanager
def _own_stack(name: str | None, tracking_uri: str | None) -> Iterator[str]:
    with database_failures("your stack"), own_stack(name, tracking_uri) as address:
        yield address


@contextmanager
def tracker_failures() -> Iterator[None]:
    """Raise EnvironmentFailure where MLflow fails under ZenML's own tracker."""
    try:
        yield
    except Exception as error:
        failure = _in_chain(error, import_module("mlflow.exceptions").MlflowException)
        if failure is None or isinstance(error, BiplineError):
            raise
        with translated("MLflow"):
            raise failure from error


@contextmanager
def local_stack(place: Path, experiment: str, tracking_uri: str | None = None) -> Iterator[str]:
    """The isolated stack of a state folder, held by this process for the length of the block."""
    state = place.absolute()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        if os.environ.get(name) and not tracking_uri:
            note(
                f"{name} is set and not followed: state {place} means a stack of its own; without "
                "it, or with promote.tracking_uri, the run is told elsewhere"
            )
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{state}: no folder for a run's state: {error.strerror}") from None
    with (
        isolated(state, tracking_uri),
        database_failures(f"{state}"),
        locked(state, f"{state}: another run is using this state folder"),
    ):
        # ZenML names the experiment after the pipeline.
        address = tracking_uri or prepare_tracking(state, experiment)
        activate_local_stack(state)
        if tracking_uri:
            note(f"stack in {place}; MLflow {without_secrets(tracking_uri)}")
        yield address


def _ended(pipeline: str, settings: StackSettings, address: str, **options: bool) -> dict[str, Any]:
    """One run of a pipeline: how it ended, its steps, and its module's ``summary`` of them."""
    name = f"{pipeline}-{datetime.now(UTC):%Y%m%dT%H%M%S-%fZ}"
    about(run=name)
    module = import_module(f"pipelines.{pipeline}")
    placed = placed_options(settings)  # before MLflow is told of a run
    tracking = Tracking(address, pipeline, name)
    tracking.begin(_told(settings), provenance())
    try:
        module.configured(settings, run_name=name, **options).with_options(**placed)(settings)
        if placed and (ended := _logged(name)):
            raise_failure(ended)
    except BaseException as error:
        close_tracking()
        cause = original(error)
        _tell_failure(tracking, cause)
        with suppress(Exception):  # what the run failed of is what is told
            _logged(name)
        raise cause from error.__cause__
    found = _logged(name)
    if found is None:
        raise RuntimeError(f"ZenML does not know the run {name} that has just ended")
    from steps.stage import stage_summary, step_runs

    steps = step_runs(found.id)
    return {
        "run_name": found.name,
        "run_id": str(found.id),
        "status": found.status.value,
        "seconds": stage_summary(found).seconds,
        "stages": tuple(stage_summary(step) for step in steps.values()),
        **module.summary(steps),
    }


def _told(settings: StackSettings) -> dict[str, str]:
    """The configuration as parameters, without where this machine keeps its state."""
    told = flattened(settings.model_dump(mode="json", exclude={*WHERE, "published"}))
    return {name: without_secrets(text) for name, text in told.items()}


def _tell_failure(tracking: Tracking, error: BaseException) -> None:
    """Say in MLflow why a run ended; where that fails too, the first error is still the one."""
    try:
        tracking.end(error)
    except BiplineError as untold:
        note(f"MLflow was not told of the failure: {untold}")


def _logged(name: str) -> PipelineRunResponse | None:
    """The run, told apart by its code, a failed one too; None where it never began."""
    from zenml import log_metadata
    from zenml.client import Client

    found = Client().list_pipeline_runs(name=name, size=1).items
    if not found:
        return None
    log_metadata(metadata=dict(provenance()), run_id_name_or_prefix=name)
    return found[0]


@contextmanager
def database_failures(place: str) -> Iterator[None]:
    """Raise EnvironmentFailure where ZenML's database fails: disk full, locked, unreadable."""
    try:
        yield
    except Exception as error:
        failure = _in_chain(error, sqlite3.Error)
        if failure is None or isinstance(error, BiplineError):
            raise
        raise EnvironmentFailure(
            f"ZenML's database of {place} failed: {failure}; finished stages are kept, "
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
