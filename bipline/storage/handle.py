"""Handles: what passes between stages in place of the bytes.

A handle names a finished directory and the digest it must have, so a stage never copies what it
only has to read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.manifest import Manifest, read_manifest, verify_directory


class StoredGone(InvalidInput):
    """What a finished stage had stored is not there any more."""


class Handle(BaseModel):
    """A finished directory: where it is, what it is, and the digest it must have.

    ``location`` is a path or an ``s3://`` place and may change from machine to machine;
    ``digest`` is the identity, ``key`` what a stage stored it under.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    location: str
    digest: str
    total_bytes: int = 0
    info: dict[str, Any] = Field(default_factory=dict)
    key: str = ""

    @classmethod
    def to_directory(cls, directory: Path, manifest: Manifest | None = None) -> Handle:
        """The handle of a finished directory."""
        return cls.to_place(str(directory.absolute()), manifest or read_manifest(directory))

    @classmethod
    def to_place(cls, location: str, manifest: Manifest) -> Handle:
        """The handle of a finished place with this manifest."""
        return cls(
            kind=manifest.kind,
            location=location,
            digest=manifest.digest,
            total_bytes=manifest.total_bytes,
            info=manifest.info,
        )

    @property
    def content(self) -> str:
        """What a stage that reads the directory is keyed by: what it holds, whoever wrote it.

        The digest, where the directory declares no content apart from that.
        """
        return str(self.info.get("content") or self.digest)

    def hold(self, manifest: Manifest) -> None:
        """Raise Refused unless the manifest found at the place is the one this was made for."""
        if manifest.digest != self.digest:
            raise Refused(
                f"{self.location}: holds {self.kind} {manifest.digest[:12]}, "
                f"the handle was made for {self.digest[:12]}"
            )

    @property
    def gone(self) -> StoredGone:
        """What is raised when there is nothing at the place."""
        return StoredGone(f"{self.location}: the stored {self.kind} is gone; run its stage again")


def open_directory(handle: Handle) -> Path:
    """The local directory of a handle, after every file in it was hashed and compared.

    Raises StoredGone when it is not there, Refused when a byte differs from what the handle was
    made for.
    """
    directory = Path(handle.location)
    if not directory.is_dir():
        raise handle.gone
    handle.hold(verify_directory(directory))
    return directory
