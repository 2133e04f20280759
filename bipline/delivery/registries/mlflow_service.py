"""MLflow as a service: where it lies, whether it answers, and its errors in one line.

It is imported when it is needed, with its usage reports switched off unless the user set them
otherwise. It is never waited for longer than a user would.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.extras import require
from bipline.storage.directory import environment_failure

SQLITE = "sqlite:///"
# MLflow's limits on what one value and one request may hold.
LONGEST_PARAM, LONGEST_TAG, BATCH, PAGE = 6000, 5000, 100, 1000
# A server that is up answers a first question at once; later ones may wait for an upload.
PROBE_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
WORK_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
LOCK_SECONDS = 5.0
# Codes by which MLflow says that the request itself was wrong.
BAD_REQUESTS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
# Libraries below MLflow whose errors reach us untranslated when a service fails.
SERVICE_LIBRARIES = {"requests", "urllib3", "sqlalchemy", "botocore", "boto3", "sqlite3", "mlflow"}


def prepare_tracking(state: Path, experiment: str) -> str:
    """Make ``STATE/mlflow`` with a database and an experiment, and give its tracking URI.

    The experiment is created with its artifacts beside the database; left to itself MLflow puts
    them where the process happens to run. Raises InvalidInput for a name MLflow refuses or a
    deleted experiment, EnvironmentFailure when the folder or the database cannot be used.
    """
    uri, folder = tracking_uri(state), (state / "mlflow").absolute()
    with translated("MLflow"):
        folder.mkdir(parents=True, exist_ok=True)
        _probe_sqlite(uri)
    prepare_experiment(uri, experiment, (folder / "artifacts").as_uri())
    return uri


def prepare_experiment(uri: str, experiment: str, artifacts: str | None = None) -> None:
    """Make an experiment where there is none; its artifacts lie where the server says, or given.

    Raises InvalidInput and EnvironmentFailure as :func:`prepare_tracking`, the latter within
    seconds where no server answers.
    """
    mlflow = mlflow_library()
    with translated("MLflow"):
        client = mlflow.MlflowClient(tracking_uri=uri)
        probe(uri)
        existing = client.get_experiment_by_name(experiment)
        if existing is None:
            client.create_experiment(experiment, artifact_location=artifacts)
        elif existing.lifecycle_stage != "active":
            raise InvalidInput(f"experiment {experiment!r} was deleted; restore it or rename it")


def tracking_uri(state: Path) -> str:
    """Where MLflow's database of a state folder lies."""
    return f"{SQLITE}{(state / 'mlflow').absolute() / 'mlflow.db'}"


def mlflow_library() -> ModuleType:
    """MLflow itself. Raises EnvironmentFailure where it is not installed."""
    # Read once, when MLflow is imported: a pipeline must not report to third parties unasked.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return require("mlflow", "pipeline")


def batches(values: Mapping[str, str], longest: int) -> Iterator[dict[str, str]]:
    """The values in as many parts as MLflow takes at once, each cut to what it takes."""
    items = [(key, cut(str(value), longest)) for key, value in values.items()]
    for start in range(0, len(items), BATCH):
        yield dict(items[start : start + BATCH])


def cut(text: str, longest: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def probe(uri: str) -> None:
    """One short question, so that a server that is down is known in seconds."""
    mlflow = mlflow_library()
    if uri.startswith(SQLITE):
        _probe_sqlite(uri)
    with limited(PROBE_LIMITS):
        try:
            mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
        except mlflow.MlflowException as error:
            # How MLflow says that there was no answer at all; an answer has a code of its own.
            if "failed with exception" not in str(error):
                raise
            raise EnvironmentFailure(
                f"{uri}: the MLflow server does not answer; start it or correct the tracking URI"
            ) from None


def _probe_sqlite(uri: str) -> None:
    """Take and release the write lock; MLflow would wait minutes for a database it cannot open."""
    path = Path(uri.removeprefix(SQLITE))
    if not path.exists():
        return
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise EnvironmentFailure(f"{path}: the MLflow database cannot be used: {error}") from None
    finally:
        connection.close()


def pages(search: Callable[..., Any], **asked: Any) -> Iterator[Any]:
    """Everything that one of MLflow's searches finds, page by page."""
    token: str | None = None
    while True:
        page = search(max_results=PAGE, page_token=token, **asked)
        yield from page
        if not (token := page.token):
            return


@contextmanager
def registry_at(address: str | None) -> Iterator[None]:
    """MLflow asks this registry for the length of the block; None leaves it as it is."""
    if address is None:
        yield
        return
    from mlflow.tracking._model_registry import utils

    before = utils._registry_uri
    try:
        mlflow_library().set_registry_uri(address)
        yield
    finally:
        utils._registry_uri = before


@contextmanager
def limited(limits: Mapping[str, str]) -> Iterator[None]:
    """Keep MLflow from retrying for half an hour; what the user has set stays."""
    added = [key for key in limits if key not in os.environ]
    os.environ.update({key: limits[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def translated(service: str) -> Iterator[None]:
    """Turn the errors of MLflow and of what lies below it into one line with an exit code."""
    try:
        yield
    except BiplineError:
        raise
    except Exception as error:
        raise _failure(service, error) or error from None


def _failure(service: str, error: Exception) -> BiplineError | None:
    """What an error means to the user; None for one that is neither MLflow's nor a service's."""
    failure = require("mlflow.exceptions", "pipeline").MlflowException
    reason = cut(without_secrets(" ".join(str(error).split())), 300) or type(error).__name__
    if isinstance(error, failure):
        if error.error_code in BAD_REQUESTS:
            return InvalidInput(f"{service} refuses: {reason}")
        return EnvironmentFailure(f"{service} failed: {reason}")
    if isinstance(error, ModuleNotFoundError):
        return EnvironmentFailure(
            f"{service} needs {error.name}, not installed here; install it or correct the URI"
        )
    if type(error).__module__.split(".")[0] in SERVICE_LIBRARIES:
        return EnvironmentFailure(f"{service} failed: {reason}")
    if isinstance(error, OSError):
        return environment_failure(error) or EnvironmentFailure(f"{service} failed: {reason}")
    return None
