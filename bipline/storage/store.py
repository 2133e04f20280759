"""The Store: where finished directories live, one place per stage and key.

A :class:`Handle` is what passes between stages: it names the place and the digest of the
manifest found there, so a stage never copies what it only has to read. The place is
``ROOT/STAGE/KEY``; the key is made of digests (see :mod:`bipline.storage.stage_key`), so a
place that exists is the answer to a question already asked. Stored files are read-only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.directory import DirectoryWriter, atomic_directory
from bipline.storage.manifest import Manifest, read_manifest, verify_directory


class Handle(BaseModel):
    """A finished directory: where it is, what it is, and the digest it must have.

    ``location`` may change from machine to machine; ``digest`` is the identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    location: str
    digest: str
    total_bytes: int = 0
    info: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def to_directory(cls, directory: Path, manifest: Manifest | None = None) -> Handle:
        """The handle of a finished directory."""
        manifest = manifest or read_manifest(directory)
        return cls(
            kind=manifest.kind,
            location=str(directory.absolute()),
            digest=manifest.digest,
            total_bytes=manifest.total_bytes,
            info=manifest.info,
        )

    def open(self) -> Path:
        """The directory, after every file in it was hashed and compared.

        Raises Refused when a byte differs from what the handle was made for.
        """
        directory = Path(self.location)
        if not directory.is_dir():
            raise InvalidInput(f"{directory}: the stored {self.kind} is gone; run its stage again")
        manifest = verify_directory(directory)
        if manifest.digest != self.digest:
            raise Refused(
                f"{directory}: holds {self.kind} {manifest.digest[:12]}, "
                f"the handle was made for {self.digest[:12]}"
            )
        return directory


class LocalStore:
    """A Store in a local directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, stage: str, key: str) -> Path:
        """Where the output of a stage with this key belongs."""
        return self.root / stage / key[:32]

    def find(self, stage: str, key: str) -> Handle | None:
        """The finished output of a stage with this key, or None."""
        place = self.place(stage, key)
        return Handle.to_directory(place) if place.is_dir() else None

    @contextmanager
    def write(self, stage: str, key: str, kind: str) -> Iterator[DirectoryWriter]:
        """Write the output of a stage atomically; afterwards its files are read-only."""
        place = self.place(stage, key)
        with atomic_directory(place, kind) as writer:
            yield writer
            for path in writer.path.rglob("*"):
                if path.is_file():
                    path.chmod(0o444)


def store_at(uri: str) -> LocalStore:
    """The Store behind a path. Raises InvalidInput for schemes this version does not serve."""
    if "://" in uri and not uri.startswith("file://"):
        raise InvalidInput(f"store {uri!r}: only local paths are supported; give a directory")
    return LocalStore(Path(uri.removeprefix("file://")))
