"""What promotion needs of a registry: versions that can be found, read, hashed, and pointed at."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from bipline.delivery.evidence import Evidence
from bipline.delivery.registries.journal import Registry
from bipline.values.verdict import Verdict


class Version(Protocol):
    """A registered version of a package: its number, its digest, and where its files lie."""

    @property
    def number(self) -> str:
        """Its number, by which the journal names it."""

    @property
    def package_digest(self) -> str:
        """The digest of its package."""

    @property
    def location(self) -> str:
        """Where its files lie."""

    @property
    def evaluated_at(self) -> datetime | None:
        """When its records were measured; None where nobody said."""


AnyVersion = TypeVar("AnyVersion", bound=Version)


class PackageRegistry(Registry, Protocol[AnyVersion]):
    """One registered model with its packages, its journal and its aliases."""

    def find(self, wanted: str) -> AnyVersion:
        """A version by its number, or ``@ALIAS``. Raises InvalidInput where there is none."""

    def evidence(self, version: AnyVersion) -> Evidence:
        """What the package of a version tells; its weights are not fetched."""

    def check(self, version: AnyVersion) -> str:
        """Hash every stored file of a version again; its digest. Raises Refused for a change."""

    def keep(self, version: AnyVersion, verdict: Verdict) -> None:
        """Keep a verdict beside its version."""

    def fetch(self, version: AnyVersion, folder: Path) -> Path:
        """The package of a version below a folder, every file of it hashed."""
