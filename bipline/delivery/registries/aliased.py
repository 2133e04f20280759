"""What the aliases of an MLflow registry point at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.delivery.registries.journal_mlflow import SUFFIX, pointed_at
from bipline.delivery.registries.mlflow import DIGEST_TAG
from bipline.delivery.registries.mlflow_service import (
    WORK_LIMITS,
    limited,
    mlflow_library,
    pages,
    probe,
    translated,
)


@dataclass(frozen=True)
class AliasedVersion:
    """An alias and the version that it points at; whether that is, or was, a package of ours."""

    model: str
    alias: str
    version: str
    is_ours: bool


def aliased_versions(address: str, name: str | None = None) -> list[AliasedVersion]:
    """Every alias of a registry, or of one registered model.

    Raises InvalidInput for a model that is not there, EnvironmentFailure where nobody answers.
    """
    with translated("MLflow"), limited(WORK_LIMITS), pointed_at(address):
        probe(address)
        client = mlflow_library().MlflowClient(tracking_uri=address, registry_uri=address)
        models = list(pages(client.search_registered_models))
        names = {model.name for model in models}
        if name is not None and name not in names:
            raise InvalidInput(f"the registry knows no model {name!r}")
        own = [model for model in models if name in (None, model.name)]
        return [each for model in own for each in _of(client, model, names)]


def _of(client: Any, model: Any, names: set[str]) -> Iterator[AliasedVersion]:
    for alias, version in sorted(model.aliases.items()):
        # A version of a model with a journal was ours even where its tag is gone.
        tags = client.get_model_version(model.name, version).tags
        is_ours = DIGEST_TAG in tags or f"{model.name}{SUFFIX}" in names
        yield AliasedVersion(model.name, alias, str(version), is_ours)
