"""Every registered version of a registry, with the pipeline run that registered it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from bipline.delivery.registries.mlflow import DIGEST_TAG
from bipline.delivery.registries.mlflow_service import (
    WORK_LIMITS,
    limited,
    mlflow_library,
    pages,
    translated,
)

RUN_TAG = "zenml.run_name"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a package: what it is called, its package's digest, and its pipeline run.

    ``run`` is empty where no pipeline registered it.
    """

    label: str
    package_digest: str
    run: str


def registered_runs(address: str) -> list[RegisteredVersion]:
    """The versions at a registry's address, those of every model.

    Raises as :func:`bipline.delivery.registries.mlflow_service.translated`.
    """
    with translated("MLflow"), limited(WORK_LIMITS):
        client = mlflow_library().MlflowClient(tracking_uri=address, registry_uri=address)
        aliases = _aliases(client)
        return [
            RegisteredVersion(
                label=_label(version, aliases), package_digest=version.tags[DIGEST_TAG],
                run=_run(client, version),
            )
            for version in pages(client.search_model_versions)
            if DIGEST_TAG in version.tags
        ]  # fmt: skip


def _aliases(client: Any) -> dict[tuple[str, str], list[str]]:
    """Aliases by model and version."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for model in pages(client.search_registered_models):
        for alias, version in sorted(model.aliases.items()):
            found[model.name, str(version)].append(alias)
    return found


def _label(version: Any, aliases: dict[tuple[str, str], list[str]]) -> str:
    told = "".join(f" @{alias}" for alias in aliases.get((version.name, str(version.version)), ()))
    return f"{version.name} {version.version}{told}"


def _run(client: Any, version: Any) -> str:
    if not version.run_id:
        return ""
    return str(client.get_run(version.run_id).data.tags.get(RUN_TAG, ""))
