"""The MLflow registry: a run, a logged model that holds the package, a version, an alias.

The package's digest is its name here: registered a second time it is the same version, and the
files are not uploaded again. What MLflow stores is hashed again before an alias points at it.
Nothing is ever loaded as a model: what MLflow loads it by is written around the package (see
:mod:`bipline.delivery.registries.mlflow_flavors`).

With a local database MLflow keeps one copy of a package among its artifacts, beside the Store's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.base.extras import require
from bipline.base.progress import note
from bipline.delivery.registries.mlflow_flavors import (
    PACKAGE,
    digest_around,
    package_in,
    write_flavors,
)
from bipline.delivery.registries.mlflow_run import (
    NOTE_TAG,
    RunContent,
    log_curves,
    log_metrics,
    log_run,
    run_of,
)
from bipline.delivery.registries.mlflow_service import (
    LONGEST_TAG,
    WORK_LIMITS,
    cut,
    limited,
    mlflow_library,
    probe,
    translated,
)
from bipline.storage.manifest import (
    compare_names,
    read_manifest,
    relative_files,
    verify_directory,
)
from bipline.storage.names import check_label
from bipline.storage.sharing import shared
from bipline.values.summary import Registration

DIGEST_TAG, AROUND_TAG = "package_digest", "mlmodel_digest"
MODEL_TYPE = "hf-causal-lm"


def check_names(name: str, alias: str) -> None:
    """Ask MLflow's own rules for a registered model. Raises InvalidInput as MLflow would."""
    check_label(name, "promote.name")
    check_label(alias, "promote.alias")
    mlflow_library()
    with translated("MLflow"):
        _check_request(name, alias, {})


def track_and_register(
    *, package: Path, package_digest: str, name: str, alias: str, content: RunContent
) -> Registration:
    """Log a run, register the package under ``name``, check what was stored, set the alias.

    Uses the active MLflow run, or starts one at the current tracking URI. Raises InvalidInput for
    names MLflow refuses, Refused when the package or its stored copy differs from the digest or a
    metric is not finite, EnvironmentFailure when server or database cannot be reached.
    """
    mlflow = mlflow_library()
    with translated("MLflow"):
        _check_request(name, alias, {**content.metrics, **content.final})
        manifest = read_manifest(package)
        if manifest.digest != package_digest:
            raise Refused(f"{package}: is not the package {package_digest[:12]} to be registered")
        # MLflow follows links: a file from outside would be uploaded before it is compared.
        compare_names(str(package), relative_files(package), manifest)
        probe(mlflow.get_tracking_uri())
        with limited(WORK_LIMITS), run_of(mlflow) as run:
            client = mlflow.MlflowClient()
            registry = _Registry(mlflow, client, run, package, package_digest, name, content)
            run_id = run.info.run_id
            run_tags = {**content.tags, DIGEST_TAG: package_digest}
            if content.summary:
                run_tags[NOTE_TAG] = content.summary
            log_run(mlflow, run_id, content.params, content.artifacts, run_tags)
            log_metrics(client, run_id, content.metrics)
            log_curves(client, run_id, content.curves)
            version, reused = registry.version()
            client.set_registered_model_alias(name, alias, version)
    note(f"{name}: version {version}{' (registered before)' if reused else ''} is now {alias}")
    return Registration(
        mlflow_run_id=run_id, model_name=name, version=version, alias=alias, reused=reused
    )


def check_stored_copy(model: Any, package_digest: str) -> None:
    """Hash the files of a logged model; remote ones are downloaded for it.

    Raises Refused when a file differs from the package's manifest, the manifest from the digest,
    or what lies around the package from what was registered.
    """
    with TemporaryDirectory() as temporary:
        stored = stored_copy(model, temporary)
        try:
            digest = verify_directory(package_in(stored)).digest
        except BiplineError as error:
            raise Refused(f"the registry's copy is damaged: {error}") from None
        check_around(model, stored)
    if digest != package_digest:
        raise Refused(f"the registry's copy is package {digest[:12]}, not {package_digest[:12]}")


def stored_copy(model: Any, folder: str) -> Path:
    """The files of a logged model where they lie, or fetched into ``folder``; nothing is hashed.

    Raises Refused where they are gone from this machine.
    """
    location = model.artifact_location
    if _is_local(location) and not _local_place(location).exists():
        raise Refused(f"the registry's copy is gone: there is no {location}")
    return Path(
        mlflow_library().artifacts.download_artifacts(
            artifact_uri=location, dst_path=None if _is_local(location) else folder
        )
    )


def check_around(model: Any, stored: Path) -> None:
    """Raise Refused where what lies around a stored package is not what was registered."""
    around = model.tags.get(AROUND_TAG)
    if around and around != digest_around(stored):
        raise Refused(
            "the registry's copy is damaged: MLmodel, or a file beside it, is not the one that "
            "was registered"
        )


def _is_local(location: str) -> bool:
    return location.startswith(("/", "file:"))


def _local_place(location: str) -> Path:
    """The path of an address on this machine, in which spaces and the like are quoted."""
    files = require("mlflow.utils.file_utils", "pipeline")
    return Path(files.local_file_uri_to_path(location))


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


@dataclass(frozen=True)
class _Registry:
    """One package on its way into the registry."""

    mlflow: ModuleType
    client: Any
    run: Any
    package: Path
    digest: str
    name: str
    content: RunContent

    def version(self) -> tuple[str, bool]:
        """The version of this digest, and whether it is an old one; its files were hashed again."""
        client, existing = self.client, _version_of(self.client, self.name, self.digest)
        if existing:
            model = logged_model(client, existing.source, self.name, existing.version)
        else:
            model = _stored_model(self.mlflow, client, self.run, self.digest)
        if model:
            check_stored_copy(model, self.digest)
        else:
            model = self._upload()
        output = self.mlflow.entities.LoggedModelOutput(model.model_id, 0)
        client.log_outputs(self.run.info.run_id, [output])
        log_metrics(client, self.run.info.run_id, self.content.final, model.model_id)
        version = existing or self.mlflow.register_model(
            model.model_uri, self.name, tags={DIGEST_TAG: self.digest}
        )
        self._describe(version)
        return str(version.version), bool(existing)

    def _describe(self, version: Any) -> None:
        """Tags and description of a version; what it said of itself before is not overwritten."""
        told = version.tags
        for tag, value in self.content.version_tags.items():
            if tag not in told:
                self.client.set_model_version_tag(
                    self.name, version.version, tag, cut(value, LONGEST_TAG)
                )
        if self.content.summary and not version.description:
            page = f"#/experiments/{self.run.info.experiment_id}/runs/{self.run.info.run_id}"
            link = f"\n\n[The run, with report and card]({page}/artifacts)"
            text = cut(self.content.summary, LONGEST_TAG - len(link)) + link
            self.client.update_model_version(self.name, version.version, text)

    def _upload(self) -> Any:
        """Store the package as a logged model: straight from its place, then hashed there."""
        model = self.mlflow.initialize_logged_model(
            # Logged models allow fewer characters than registered ones.
            name=re.sub(r"[/:.%\"']", "-", self.name),
            source_run_id=self.run.info.run_id,
            experiment_id=self.run.info.experiment_id,
            tags={**self.content.version_tags, DIGEST_TAG: self.digest},
            model_type=MODEL_TYPE,
        )
        try:
            self._store_package(model)
            self._upload_flavors(model)
            model = self.client.get_logged_model(model.model_id)
            check_stored_copy(model, self.digest)
        except BaseException:
            self.client.finalize_logged_model(model.model_id, "FAILED")
            raise
        return self.client.finalize_logged_model(model.model_id, "READY")

    def _store_package(self, model: Any) -> None:
        """Upload the package; on this machine's disk it shares the files of the Store."""
        if not _is_local(model.artifact_location):
            self.client.log_model_artifacts(model.model_id, str(self.package), PACKAGE)
            return
        place = _local_place(model.artifact_location)
        for path in sorted(self.package.rglob("*")):
            target = place / PACKAGE / path.relative_to(self.package)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shared(path, target)

    def _upload_flavors(self, model: Any) -> None:
        """What MLflow loads a version by, where the package holds what it can load."""
        if not (self.package / "hf" / "config.json").is_file():
            note(f"{self.name}: the package holds no hf/config.json, so MLflow cannot load it")
            return
        told = {**self.content.version_tags, DIGEST_TAG: self.digest}
        with TemporaryDirectory() as temporary:
            around = Path(temporary)
            named = {"run_id": self.run.info.run_id, "model_id": model.model_id}
            write_flavors(self.package, around, told, **named)
            self.client.log_model_artifacts(model.model_id, temporary)
            self.client.set_logged_model_tags(model.model_id, {AROUND_TAG: digest_around(around)})


def _version_of(client: Any, name: str, package_digest: str) -> Any | None:
    """The first version of a registered model that was made from this package."""
    filters = f"name = '{name}' and tags.{DIGEST_TAG} = '{package_digest}'"
    versions = list(client.search_model_versions(filters))
    return min(versions, key=lambda version: int(version.version), default=None)


def logged_model(client: Any, source: str, name: str, version: str) -> Any:
    """MLflow's record of a version's files. Raises Refused where it was deleted."""
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
