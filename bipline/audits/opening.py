"""What is audited, opened: a package where it lies, or a copy that is fetched for this audit alone.

A copy that was fetched before does not stand for what is served now. Every byte is hashed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.delivery.measured import read_measured, read_packaged
from bipline.delivery.registries.journal_mlflow import MlflowRegistry, Version
from bipline.delivery.registries.mlflow import check_around
from bipline.delivery.registries.mlflow_flavors import package_in
from bipline.delivery.registries.mlflow_source import find_version
from bipline.model.resolve import HUB, fetch_repository
from bipline.stages.resolve import REGISTRY
from bipline.storage.manifest import MANIFEST_NAME, Manifest, read_manifest, verify_directory
from bipline.storage.s3 import S3Folder
from bipline.storage.s3_client import S3_SCHEME
from bipline.storage.s3_transfer import download
from bipline.values.record import EvaluationRecord


@dataclass(frozen=True)
class Served:
    """A registered version: what the registry keeps of it."""

    registry: MlflowRegistry
    version: Version
    tags: dict[str, Any]

    @classmethod
    def found(cls, source: str, address: str | None) -> Served:
        """The version. Raises InvalidInput where there is none, Refused where it has no files."""
        record = find_version(source, address)
        registry = MlflowRegistry(record.name, address)
        # By its number from here on: the alias may be moved meanwhile.
        return cls(registry, registry.find(str(record.version)), dict(record.tags))

    @property
    def digest(self) -> str:
        """The digest that the registry keeps of the package."""
        return self.version.package_digest


@dataclass(frozen=True)
class Opened:
    """A package at ``place``; no manifest where none can be read.

    ``problem`` says which file is not as listed, or why nothing can be read; ``around`` what is
    wrong beside the package; ``fetched`` where a copy came from.
    """

    place: Path
    manifest: Manifest | None = None
    problem: str = ""
    around: str = ""
    fetched: str = ""
    served: Served | None = field(default=None, repr=False)

    @property
    def digest(self) -> str | None:
        """The digest that the manifest has; None where there is none."""
        return self.manifest.digest if self.manifest else None


@contextmanager
def opened(source: str, registry: str | None, downloads: Path) -> Iterator[Opened]:
    """What a source names, hashed, for the length of the block.

    Raises InvalidInput for a source where no package lies, EnvironmentFailure where a server does
    not answer.
    """
    if not is_remote(source):
        yield _hashed(Path(source), source)
        return
    downloads.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="audit-", dir=downloads) as folder:
        if source.startswith(REGISTRY):
            yield _registered(Served.found(source, registry), Path(folder))
        else:
            place = Path(folder) / "package"
            place.mkdir()
            fetched = (_from_s3 if source.startswith(S3_SCHEME) else _from_hub)(source, place)
            yield _hashed(place, source, fetched=fetched)


def read_measured_at(source: str, registry: str | None, downloads: Path) -> EvaluationRecord:
    """As :func:`bipline.delivery.measured.read_measured`, of a package wherever it lies.

    Raises Refused for one whose bytes are not those of its manifest.
    """
    if not is_remote(source):
        return read_measured(Path(source))
    with opened(source, registry, downloads) as package:
        if package.problem:
            raise Refused(f"{source}: {package.problem}")
        return read_packaged(package.place)


def is_remote(source: str) -> bool:
    """Whether a source is no folder of this machine."""
    return source.startswith((REGISTRY, S3_SCHEME, HUB))


def _registered(served: Served, folder: Path) -> Opened:
    try:
        stored = served.registry.stored(served.version, folder)
    except (InvalidInput, Refused) as error:  # what the version points at is gone
        return Opened(folder, problem=str(error), served=served)
    around = ""
    try:
        check_around(served.version.model, stored)
    except Refused as error:
        around = str(error)
    name = f"version {served.version.number} of {served.registry.name}"
    return _hashed(package_in(stored), name, around=around, served=served)


def _hashed(place: Path, source: str, **known: Any) -> Opened:
    """A folder with every file hashed. Raises InvalidInput for one that is no package."""
    if not (place / MANIFEST_NAME).is_file() and "served" not in known:
        raise InvalidInput(f"{source}: no package: there is no {MANIFEST_NAME}")
    try:
        manifest = read_manifest(place)
    except (InvalidInput, Refused) as error:
        return Opened(place, problem=str(error), **known)
    if manifest.kind != "package":
        raise InvalidInput(
            f"{source}: holds a {manifest.kind}, not a package; bipline verify checks it"
        )
    try:
        return Opened(place, verify_directory(place), **known)
    except BiplineError as error:
        return Opened(place, manifest, problem=str(error), **known)


def _from_s3(source: str, place: Path) -> str:
    folder = S3Folder(source)
    names = folder.listed()
    if MANIFEST_NAME not in names:
        raise InvalidInput(f"{source}: no package: there is no {MANIFEST_NAME}")
    for name in names:
        download(folder.open(name), place / name)
    return f"{len(names)} objects of {source}"


def _from_hub(source: str, place: Path) -> str:
    return f"{source}, commit {fetch_repository(source, place)}"
