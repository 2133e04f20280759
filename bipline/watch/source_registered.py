"""Releases in the registry: versions of a registered model that hold a package of bipline."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.delivery.registries.journal_mlflow import MlflowRegistry
from bipline.delivery.registries.mlflow import DIGEST_TAG
from bipline.delivery.registries.mlflow_source import SCHEME, find_version
from bipline.settings.stack import USUAL_STATE
from bipline.settings.watch import SourceSettings
from bipline.stages.promote import registry_address
from bipline.values.release import Release
from bipline.watch.sources import Description, release_key, told_time

USUAL = Path(USUAL_STATE)


class RegisteredSource:
    """Versions of one registered model, in the registry that the runs ask."""

    def __init__(
        self, name: str, settings: SourceSettings, folder: Path, state: Path | None
    ) -> None:
        self._name, self._state, self._registry = name, state, settings.registry
        self._model = str(settings.registered)
        self.places = (f"{SCHEME}{self._model}",)

    def listed(self, place: str) -> list[Release]:
        """Every version, by the digest of its package or the place of its files."""
        address = registry_address(self._registry, self._state, USUAL)
        found = MlflowRegistry(self._model, address).versions()
        return [self._release(place, version) for version in found]

    def described(self, release: Release) -> Description:
        """What the version's tags say; its files are fetched by the run."""
        address = registry_address(self._registry, self._state, USUAL)
        version = find_version(release.model, address)
        if _identity(version) != release.revision:
            raise InvalidInput(f"{release.model}: is another version than was listed")
        tags = {f"{name}={value}" for name, value in version.tags.items()}
        return Description(None, None, None, frozenset(tags))

    def is_still(self, release: Release) -> bool:
        """True: its address names the version, and the run holds its files to their digests."""
        return True

    def _release(self, place: str, version: Any) -> Release:
        created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        identity = _identity(version)
        return Release(
            key=release_key(self._name, "version", identity), source=self._name, place=place,
            name=self._model, revision=identity, model=f"{place}/{version.version}",
            published=told_time(created),
        )  # fmt: skip


def _identity(version: Any) -> str:
    return str(version.tags.get(DIGEST_TAG) or version.source)
