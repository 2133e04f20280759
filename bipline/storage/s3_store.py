"""A Store behind ``s3://bucket/prefix``.

Below ``PREFIX/STAGE/KEY/`` lie the files of a finished directory. Its ``manifest.json`` is put
last, on the condition that there is none: without it nothing is there for readers, and of two
writers the second finds what the first stored. What is written and read whole lies below
``downloads`` of this machine: ``scratch`` for what is being made, ``copies`` for what was fetched,
by digest. Parts of uploads that were killed stay in the bucket until its lifecycle removes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.digests import digest_bytes
from bipline.storage.directory import DirectoryWriter, atomic_directory
from bipline.storage.folder import Folder, open_folder
from bipline.storage.handle import Handle, open_directory
from bipline.storage.local_store import NAME_DIGITS, cost_text, seal
from bipline.storage.locks import waiting_lock
from bipline.storage.manifest import (
    MANIFEST_NAME,
    Manifest,
    compare_names,
    differs,
    parse_manifest,
    read_manifest,
    verify_directory,
)
from bipline.storage.s3 import S3File, S3Folder
from bipline.storage.s3_client import S3_SCHEME, MissingObject
from bipline.storage.s3_lease import LEASE_SECONDS
from bipline.storage.s3_transfer import download, upload
from bipline.storage.s3_work import MIRROR_SECONDS, mirrored_work
from bipline.storage.strict_json import parse_object


class S3Store:
    """A Store below an S3 prefix.

    A holder of work that is killed keeps others out for ``lease_seconds``; its records are copied
    to S3 every ``mirror_seconds``.
    """

    def __init__(
        self,
        location: str,
        downloads: Path,
        lease_seconds: float = LEASE_SECONDS,
        mirror_seconds: float = MIRROR_SECONDS,
    ) -> None:
        self._place = S3Folder(location)
        self._copies = downloads / "copies"
        own = digest_bytes(self.location.encode())[:NAME_DIGITS]
        self._scratch = downloads / "scratch" / own
        self._lease_seconds = lease_seconds
        self._mirror_seconds = mirror_seconds

    @property
    def location(self) -> str:
        """The place as it was given."""
        return self._place.location

    def find(self, stage: str, key: str) -> Handle | None:
        """The finished output of a stage with this key, or None; its manifest alone is read."""
        place = self._output(stage, key)
        manifest = _stored_manifest(place)
        return Handle.to_place(place.location, manifest) if manifest else None

    @contextmanager
    def write(self, stage: str, key: str, kind: str) -> Iterator[DirectoryWriter]:
        """Write the output of a stage on this machine, then store it whole.

        What a killed run uploaded is not uploaded again.
        Raises InvalidInput when another process of this machine writes it, Refused when another
        writer stored other bytes under this key.
        """
        place, scratch = self._output(stage, key), self._scratch / stage / key[:NAME_DIGITS]
        journal = scratch.with_name(f"{scratch.name}.journal.json")
        # Stored already, by a run that was killed before it made a copy of it.
        shutil.rmtree(scratch, ignore_errors=True)

        def store(directory: Path, manifest: Manifest) -> None:
            seal(directory, manifest)
            _store(place, directory, manifest)

        with atomic_directory(scratch, kind, journal, key, store) as writer:
            yield writer
        journal.unlink(missing_ok=True)
        self._keep(scratch)

    def work(self, stage: str, key: str) -> AbstractContextManager[Path]:
        """A work directory on this machine (see :func:`bipline.storage.s3_work.mirrored_work`)."""
        name = key[:NAME_DIGITS]
        return mirrored_work(
            self._place.below(f"work/{stage}"),
            name,
            self._scratch / stage / f"{name}.work",
            self._lease_seconds,
            self._mirror_seconds,
        )

    def open(self, handle: Handle) -> Path:
        """A copy on this machine, hashed and compared; one that is whole is used again.

        Raises StoredGone when nothing is stored there, Refused when a byte differs.
        """
        if not handle.location.startswith(S3_SCHEME):
            return open_directory(handle)
        place = S3Folder(handle.location)
        manifest = _stored_manifest(place)
        if manifest is None:
            raise handle.gone
        handle.hold(manifest)
        copy = self._copies / manifest.digest[:NAME_DIGITS]
        with waiting_lock(copy.with_name(f".{copy.name}.lock")):
            if not _is_whole(copy):
                shutil.rmtree(copy, ignore_errors=True)
                _fetch(place, manifest, copy)
        return copy

    def folder(self, handle: Handle) -> Folder:
        """What a handle names, read from S3 by ranges."""
        if not handle.location.startswith(S3_SCHEME):
            return open_folder(handle.location)
        return S3Folder(handle.location)

    def discard(self, stage: str, key: str) -> None:
        """Remove the output of this key, its manifest first, and the copy on this machine."""
        place = self._output(stage, key)
        manifest = _stored_manifest(place)
        if manifest is None:
            return
        place.remove([MANIFEST_NAME])
        place.remove(place.listed())
        shutil.rmtree(self._copies / manifest.digest[:NAME_DIGITS], ignore_errors=True)

    def write_cost(self, stage: str, key: str, cost: dict[str, Any]) -> None:
        """Keep what making the output cost, beside it."""
        self._place.put(_cost_name(stage, key), cost_text(cost).encode())

    def read_cost(self, stage: str, key: str) -> dict[str, Any] | None:
        """What making the output cost, or None where nothing was kept."""
        name = _cost_name(stage, key)
        try:
            return parse_object(self._place.read(name), self._place.where(name), "cost")
        except MissingObject:
            return None

    def _output(self, stage: str, key: str) -> S3Folder:
        below = self._place.where(f"{stage}/{key[:NAME_DIGITS]}")
        return S3Folder(below)

    def _keep(self, scratch: Path) -> None:
        """Make what was just written the copy of its digest, unless there is one already."""
        with suppress(InvalidInput, OSError):
            copy = self._copies / read_manifest(scratch).digest[:NAME_DIGITS]
            with waiting_lock(copy.with_name(f".{copy.name}.lock")):
                scratch.rename(copy)
        shutil.rmtree(scratch, ignore_errors=True)


def _cost_name(stage: str, key: str) -> str:
    return f"{stage}/{key[:NAME_DIGITS]}.cost.json"


def _stored_manifest(place: S3Folder) -> Manifest | None:
    try:
        content = place.read(MANIFEST_NAME)
    except MissingObject:
        return None
    return parse_manifest(content, place.where(MANIFEST_NAME))


def _is_stored(place: S3Folder, manifest: Manifest) -> bool:
    """Whether this was stored already. Raises Refused when something else was."""
    stored = _stored_manifest(place)
    if stored is None or stored.digest == manifest.digest:
        return stored is not None
    raise Refused(
        f"{place.location}: holds {stored.kind} {stored.digest[:12]}, this run made "
        f"{manifest.digest[:12]} under the same key; one of the two is not reproducible"
    )


def _store(place: S3Folder, directory: Path, manifest: Manifest) -> None:
    """Upload what is not there yet, then the manifest, unless another writer was first."""
    if _is_stored(place, manifest):
        return
    # Of a run that was killed while it wrote other files under this key.
    place.remove(name for name in place.listed() if name not in manifest.files)
    for name, entry in manifest.files.items():
        upload(place, name, directory / name, entry)
    if place.put(MANIFEST_NAME, manifest.to_json().encode(), "") is None:
        _is_stored(place, manifest)


def _is_whole(copy: Path) -> bool:
    """Whether a local copy is what its manifest says; one that was damaged is fetched again."""
    try:
        return verify_directory(copy).digest.startswith(copy.name)
    except (InvalidInput, Refused):
        return False


def _fetch(place: S3Folder, manifest: Manifest, copy: Path) -> None:
    """Copy a finished directory; files that a killed run fetched are not fetched again."""
    compare_names(place.location, set(place.listed()) - {MANIFEST_NAME}, manifest)
    journal = copy.with_name(f".{copy.name}.journal.json")
    with atomic_directory(copy, manifest.kind, journal, manifest.digest, seal) as writer:
        writer.info = manifest.info
        for name, entry in manifest.files.items():
            if writer.has(name):
                continue
            fetched = download(S3File(place, name), writer.path / name)
            if fetched != entry:
                raise differs(place.location, name)
            writer.add_hashed(name, fetched.size, fetched.sha256)
    journal.unlink(missing_ok=True)
