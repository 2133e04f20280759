"""Models read from the MLflow registry: ``models:/NAME@ALIAS`` and ``models:/NAME/VERSION``.

Asked is the registry at the address that is given, else where ``MLFLOW_TRACKING_URI`` points.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.base.extras import require
from bipline.base.progress import note
from bipline.delivery.registries.mlflow import DIGEST_TAG, logged_model
from bipline.delivery.registries.mlflow_flavors import package_in
from bipline.delivery.registries.mlflow_service import (
    PROBE_LIMITS,
    SQLITE,
    WORK_LIMITS,
    limited,
    mlflow_library,
    translated,
)
from bipline.storage.manifest import verify_directory

SCHEME = "models:/"


def find_version(source: str, registry: str | None = None) -> Any:
    """MLflow's record of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; nothing is fetched.

    Raises InvalidInput for one that is not there or is no package, EnvironmentFailure where the
    registry does not answer.
    """
    mlflow, (name, wanted) = mlflow_library(), _parts(source)
    failure = require("mlflow.exceptions", "pipeline").MlflowException
    with translated("MLflow"), limited(PROBE_LIMITS):
        address = registry or mlflow.get_tracking_uri()
        _refuse_absent(source, address)
        client = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
        try:
            if wanted.startswith("@"):
                version = client.get_model_version_by_alias(name, wanted[1:])
            else:
                version = client.get_model_version(name, wanted)
        except failure as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InvalidInput(f"{source}: the registry at {address} has no such version") from None
    if DIGEST_TAG not in version.tags:
        raise InvalidInput(
            f"{source}: version {version.version} bears no {DIGEST_TAG}, so it is no package of "
            "bipline"
        )
    return version


def download_version(source: str, downloads: Path, registry: str | None = None) -> tuple[Path, str]:
    """The model of a registered package below ``downloads``, and its version.

    Every file is hashed, however it came there; what is half fetched has no name yet.
    Raises as :func:`find_version`, and Refused where a byte differs.
    """
    version = find_version(source, registry)
    digest = version.tags[DIGEST_TAG]
    target = downloads / "registry" / digest[:32]
    if not target.is_dir():
        note(f"fetching version {version.version} of {version.name} to {target}")
        _fetch(version, target, registry)
    found = verify_directory(target).digest
    if found != digest:
        raise Refused(f"{target}: holds package {found[:12]}, not {digest[:12]} of {source}")
    return target / "hf", str(version.version)


def _fetch(version: Any, target: Path, registry: str | None) -> None:
    mlflow = mlflow_library()
    address = registry or mlflow.get_tracking_uri()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        translated("MLflow"),
        limited(WORK_LIMITS),
        TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary,
    ):
        client = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
        model = logged_model(client, version.source, version.name, version.version)
        whole = Path(temporary) / "package"
        whole.mkdir()
        mlflow.artifacts.download_artifacts(
            artifact_uri=model.artifact_location, dst_path=str(whole), tracking_uri=address
        )
        stored = _package_in(whole)
        verify_directory(stored)
        if not target.is_dir():  # else another process was first
            stored.rename(target)


def _package_in(folder: Path) -> Path:
    """The folder with the manifest: MLflow keeps the last name of what it fetched."""
    inner = [path for path in folder.iterdir() if path.is_dir()]
    fetched = any((folder / name).is_file() for name in ("manifest.json", "MLmodel"))
    return package_in(inner[0] if len(inner) == 1 and not fetched else folder)


def _refuse_absent(source: str, address: str) -> None:
    """MLflow would make a database where there is none."""
    place = Path(address.removeprefix(SQLITE))
    if address.startswith(SQLITE) and not place.is_file():
        raise InvalidInput(f"{source}: there is no registry at {place} yet")


def _parts(source: str) -> tuple[str, str]:
    """The name, and ``@ALIAS`` or a version. Raises InvalidInput for anything else."""
    text = source.removeprefix(SCHEME)
    for sign in ("@", "/"):
        name, _, wanted = text.partition(sign)
        if name and wanted:
            return name, f"@{wanted}" if sign == "@" else wanted
    raise InvalidInput(f"{source}: write models:/NAME@ALIAS or models:/NAME/VERSION")
