"""The MLflow registry: a run, a logged model that holds the package, a version, an alias.

The package's digest is its name here: registered a second time it is the same version, and the
files are not uploaded again. What MLflow stores is hashed again before an alias points at it.
Nothing is ever loaded as a model. MLflow is imported when it is needed, with its usage reports
switched off unless the user set them otherwise.

With a local database MLflow keeps one copy of a package among its artifacts, beside the Store's.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
from bipline.base.extras import require
from bipline.base.progress import note
from bipline.storage.directory import environment_failure
from bipline.storage.manifest import (
    compare_names,
    read_manifest,
    relative_files,
    verify_directory,
)
from bipline.storage.names import check_label
from bipline.values.summary import Registration

DIGEST_TAG = "package_digest"
MODEL_TYPE = "hf-causal-lm"
SQLITE = "sqlite:///"
# MLflow's limits on what one value and one request may hold.
LONGEST_PARAM, LONGEST_TAG, BATCH = 6000, 5000, 100
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
    with _translated("MLflow"):
        folder.mkdir(parents=True, exist_ok=True)
        _probe_sqlite(uri)
        client = _mlflow().MlflowClient(tracking_uri=uri)
        existing = client.get_experiment_by_name(experiment)
        if existing is None:
            client.create_experiment(experiment, artifact_location=(folder / "artifacts").as_uri())
        elif existing.lifecycle_stage != "active":
            raise InvalidInput(f"experiment {experiment!r} was deleted; restore it or rename it")
    return uri


def tracking_uri(state: Path) -> str:
    """Where MLflow's database of a state folder lies."""
    return f"{SQLITE}{(state / 'mlflow').absolute() / 'mlflow.db'}"


def check_names(name: str, alias: str) -> None:
    """Ask MLflow's own rules for a registered model. Raises InvalidInput as MLflow would."""
    check_label(name, "promote.name")
    check_label(alias, "promote.alias")
    _mlflow()
    with _translated("MLflow"):
        _check_request(name, alias, {})


def track_and_register(
    *,
    package: Path,
    package_digest: str,
    name: str,
    alias: str,
    params: dict[str, str],
    metrics: dict[str, float],
    artifacts: dict[str, str],
    tags: dict[str, str],
) -> Registration:
    """Log a run, register the package under ``name``, check what was stored, set the alias.

    Uses the active MLflow run, or starts one at the current tracking URI. ``artifacts`` maps
    file names to texts. Raises InvalidInput for names MLflow refuses, Refused when the package
    or its stored copy differs from the digest or a metric is not finite, EnvironmentFailure
    when server or database cannot be reached.
    """
    mlflow = _mlflow()
    with _translated("MLflow"):
        _check_request(name, alias, metrics)
        manifest = read_manifest(package)
        if manifest.digest != package_digest:
            raise Refused(f"{package}: is not the package {package_digest[:12]} to be registered")
        # MLflow follows links: a file from outside would be uploaded before it is compared.
        compare_names(str(package), relative_files(package), manifest)
        _probe(mlflow)
        with _limited(WORK_LIMITS), _run(mlflow) as run:
            run_tags = {**tags, DIGEST_TAG: package_digest}
            _log_run(mlflow, run.info.run_id, params, artifacts, run_tags)
            version, reused = _register(mlflow, run, package, package_digest, name, metrics)
            mlflow.MlflowClient().set_registered_model_alias(name, alias, version)
    note(f"{name}: version {version}{' (registered before)' if reused else ''} is now {alias}")
    return Registration(
        mlflow_run_id=run.info.run_id,
        model_name=name,
        version=version,
        alias=alias,
        reused=reused,
    )


def check_stored_copy(location: str, package_digest: str) -> None:
    """Hash the files stored at an artifact location; remote ones are downloaded for it.

    Raises Refused when a file differs from the package's manifest, or the manifest from the
    digest.
    """
    mlflow = _mlflow()
    local = "://" not in location or location.startswith("file://")
    with TemporaryDirectory() as temporary:
        stored = Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=location, dst_path=None if local else temporary
            )
        )
        try:
            digest = verify_directory(stored).digest
        except BiplineError as error:
            raise Refused(f"the registry's copy is damaged: {error}") from None
    if digest != package_digest:
        raise Refused(f"the registry's copy is package {digest[:12]}, not {package_digest[:12]}")


def _mlflow() -> ModuleType:
    # Read once, when MLflow is imported: a pipeline must not report to third parties unasked.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return require("mlflow", "pipeline")


def _check_request(name: str, alias: str, metrics: Mapping[str, float]) -> None:
    """Ask MLflow's own rules before anything is uploaded; the server asks them last."""
    validation = require("mlflow.utils.validation", "pipeline")
    if "'" in name:
        raise InvalidInput(f"model name {name!r}: a quotation mark cannot be searched for")
    validation._validate_model_name(name)
    validation._validate_model_alias_name(alias)
    validation._validate_model_alias_name_reserved(alias)
    for metric, value in metrics.items():
        if not math.isfinite(value):
            raise Refused(f"metric {metric} is {value}; a model without its numbers stays out")


@contextmanager
def _run(mlflow: ModuleType) -> Iterator[Any]:
    """The active run, left open for whoever opened it, or a new one."""
    if active := mlflow.active_run():
        yield active
        return
    with mlflow.start_run() as run:
        yield run


def _log_run(
    mlflow: ModuleType,
    run_id: str,
    params: Mapping[str, str],
    artifacts: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    for batch in _batches(params, LONGEST_PARAM):
        mlflow.log_params(batch, run_id=run_id)
    for batch in _batches(tags, LONGEST_TAG):
        mlflow.set_tags(batch)
    for file_name, text in artifacts.items():
        mlflow.log_text(text, file_name, run_id=run_id)


def _batches(values: Mapping[str, str], longest: int) -> Iterator[dict[str, str]]:
    items = [(key, _cut(str(value), longest)) for key, value in values.items()]
    for start in range(0, len(items), BATCH):
        yield dict(items[start : start + BATCH])


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _register(
    mlflow: ModuleType,
    run: Any,
    package: Path,
    package_digest: str,
    name: str,
    metrics: dict[str, float],
) -> tuple[str, bool]:
    """The version of this digest, old or new, after its stored files were hashed again."""
    client = mlflow.MlflowClient()
    if existing := _version_of(client, name, package_digest):
        model = _logged_model(client, existing.source, name, existing.version)
        check_stored_copy(model.artifact_location, package_digest)
        mlflow.log_metrics(metrics, model_id=model.model_id)
        return str(existing.version), True
    model = _stored_model(mlflow, client, run, package_digest)
    if model is None:
        model = _upload(mlflow, client, run, package, package_digest, name)
    else:
        check_stored_copy(model.artifact_location, package_digest)
    mlflow.log_metrics(metrics, model_id=model.model_id)
    version = mlflow.register_model(model.model_uri, name, tags={DIGEST_TAG: package_digest})
    return str(version.version), False


def _version_of(client: Any, name: str, package_digest: str) -> Any | None:
    """The first version of a registered model that was made from this package."""
    filters = f"name = '{name}' and tags.{DIGEST_TAG} = '{package_digest}'"
    versions = list(client.search_model_versions(filters))
    return min(versions, key=lambda version: int(version.version), default=None)


def _logged_model(client: Any, source: str, name: str, version: str) -> Any:
    failure = require("mlflow.exceptions", "pipeline").MlflowException
    try:
        return client.get_logged_model(source.removeprefix("models:/"))
    except failure as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise Refused(
            f"version {version} of {name} has lost its logged model; delete it and register again"
        ) from None


def _stored_model(mlflow: ModuleType, client: Any, run: Any, package_digest: str) -> Any | None:
    """A finished logged model of this package: left by a killed process, or by another name."""
    found = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"tags.{DIGEST_TAG} = '{package_digest}'"
    )
    ready = mlflow.entities.LoggedModelStatus.READY
    return next((model for model in found if model.status == ready), None)


def _upload(
    mlflow: ModuleType, client: Any, run: Any, package: Path, package_digest: str, name: str
) -> Any:
    """Store the package as a logged model: straight from its place, then hashed there."""
    model = mlflow.initialize_logged_model(
        # Logged models allow fewer characters than registered ones.
        name=re.sub(r"[/:.%\"']", "-", name),
        source_run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        tags={DIGEST_TAG: package_digest},
        model_type=MODEL_TYPE,
    )
    try:
        client.log_model_artifacts(model.model_id, str(package))
        check_stored_copy(model.artifact_location, package_digest)
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return client.finalize_logged_model(model.model_id, "READY")


def _probe(mlflow: ModuleType) -> None:
    """One short question, so that a server that is down is known in seconds."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith(SQLITE):
        _probe_sqlite(uri)
    with _limited(PROBE_LIMITS):
        try:
            mlflow.MlflowClient().search_experiments(max_results=1)
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


@contextmanager
def _limited(limits: Mapping[str, str]) -> Iterator[None]:
    """Keep MLflow from retrying for half an hour; what the user has set stays."""
    added = [key for key in limits if key not in os.environ]
    os.environ.update({key: limits[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def _translated(service: str) -> Iterator[None]:
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
    reason = _cut(without_secrets(" ".join(str(error).split())), 300) or type(error).__name__
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
