"""What lies in a local Store: finished directories and unfinished work, with size and age."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.storage.local_store import NAME_DIGITS, LocalStore
from bipline.storage.manifest import MANIFEST_NAME, read_manifest
from bipline.values.stored import StoredEntry

KEY = re.compile(rf"\.?([0-9a-f]{{{NAME_DIGITS}}})(\.work|\.partial)?$")


def entries_of(root: Path) -> list[StoredEntry]:
    """Every entry of the Store at ``root``, the oldest first; no file's bytes are read."""
    found = [
        _entry(place, match[1])
        for stage in sorted(_folders(root))
        for place in sorted(_folders(stage))
        if (match := KEY.match(place.name))
    ]
    return sorted(found, key=lambda entry: (entry.made, entry.name))


def remove(root: Path, entry: StoredEntry) -> None:
    """Remove a finished entry and what is kept of its cost."""
    store = LocalStore(root)
    store.discard(entry.stage, entry.key)
    store.forget_cost(entry.stage, entry.key)


def _folders(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (each for each in place.iterdir() if each.is_dir() and not each.is_symlink())


def _entry(place: Path, key: str) -> StoredEntry:
    finished = (place / MANIFEST_NAME).is_file() and place.name == key
    kind = digest = None
    if finished:
        try:
            manifest = read_manifest(place)
            kind, digest = manifest.kind, manifest.digest
        except InvalidInput:
            kind = "damaged"
    sizes = [path.lstat() for path in place.rglob("*") if path.is_file()]
    return StoredEntry(
        stage=place.parent.name,
        key=key,
        finished=finished,
        kind=kind,
        digest=digest,
        bytes=sum(size.st_size for size in sizes),
        own_bytes=sum(size.st_size for size in sizes if size.st_nlink == 1),
        made=datetime.fromtimestamp(int(place.stat().st_mtime), UTC),
    )
