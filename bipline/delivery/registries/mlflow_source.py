"""Models read from the MLflow registry: ``models:/NAME@ALIAS`` and ``models:/NAME/VERSION``."""

from __future__ import annotations

from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.delivery.registries.mlflow import DIGEST_TAG, _mlflow, _translated
from bipline.storage.manifest import verify_directory


def download_version(source: str, downloads: Path) -> tuple[Path, str]:
    """The model of a registered version, ``models:/NAME@ALIAS`` or ``/VERSION``, and its version.

    The package is hashed; its ``hf`` folder is the model. Raises InvalidInput for a version that
    is not there, Refused where a byte differs.
    """
    mlflow = _mlflow()
    place = downloads / "registry"
    with _translated("MLflow"):
        client, name, wanted = mlflow.MlflowClient(), *_parts(source)
        version = (
            client.get_model_version_by_alias(name, wanted[1:])
            if wanted.startswith("@")
            else client.get_model_version(name, wanted)
        )
        target = place / f"{name}-{version.version}-{version.tags.get(DIGEST_TAG, '')[:12]}"
        target.mkdir(parents=True, exist_ok=True)
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{name}/{version.version}", dst_path=str(target)
        )
        package = Path(found)
        verify_directory(package)
    return package / "hf", str(version.version)


def _parts(source: str) -> tuple[str, str]:
    """The name, and ``@ALIAS`` or a version. Raises InvalidInput for anything else."""
    text = source.removeprefix("models:/")
    for sign in ("@", "/"):
        name, _, wanted = text.partition(sign)
        if name and wanted:
            return name, f"@{wanted}" if sign == "@" else wanted
    raise InvalidInput(f"{source}: write models:/NAME@ALIAS or models:/NAME/VERSION")
