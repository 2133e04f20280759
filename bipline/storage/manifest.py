"""A manifest lists every file of a directory with its size and sha256.

It is written last, so it is also the commit marker: a directory without a manifest is not
finished and does not exist for readers. The directory's digest is computed from the listing,
never from where the directory lies, so a moved directory keeps its digest. ``info`` holds what
the directory declares about itself (shapes, counts, digests of its inputs); it is covered by
the digest too.

Version 1 listed lines of digest and name, without sizes: a newline in a name could make two
folders alike. Since version 2 the listing that is digested is JSON. Digests of version 1 stay what
they were.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.digests import digest_file, digest_json, digest_listing
from bipline.storage.names import is_plain_name
from bipline.storage.strict_json import parse_object

MANIFEST_NAME = "manifest.json"
# Signs the manifest, so no manifest can list it: see bipline/delivery/signature.py.
SIGNATURE_NAME = "manifest.json.sig"
BESIDE = (MANIFEST_NAME, SIGNATURE_NAME)
# A package's folder with a manifest of its own: see bipline/delivery/lineage.py.
LINEAGE = "lineage"
SCHEMA_VERSION: Literal[2] = 2
# Nothing that is written here is a program, runs as its owner, or is for everyone to write.
WRONG_MODES = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | 0o111 | stat.S_IWOTH


class FileEntry(BaseModel):
    """One file of a directory: its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The listing of a directory. ``files`` maps POSIX paths relative to the directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    kind: str
    files: dict[str, FileEntry]
    info: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _inside(self) -> Manifest:
        for name in self.files:
            if not is_plain_name(name) or is_beside(name):
                raise ValueError(f"{name!r} is no name of a file in the directory")
            if self.schema_version == 1 and "\n" in name:
                raise ValueError(f"{name!r} holds a newline, which version 1 cannot tell of")
        return self

    @property
    def digest(self) -> str:
        """The content address of the directory: kind, files and what it declares."""
        if self.schema_version == 1:
            files = digest_listing({name: entry.sha256 for name, entry in self.files.items()})
            return digest_json({"kind": self.kind, "files": files, "info": self.info})
        return digest_json(self.model_dump(mode="json"))

    @property
    def total_bytes(self) -> int:
        """Size of all listed files together, in bytes."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> str:
        """The text of ``manifest.json``: sorted and indented, the same for the same content."""
        value = {**self.model_dump(), "digest": self.digest}
        return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def is_beside(name: str) -> bool:
    """Whether a file is the manifest, its signature, or of the lineage: what no manifest lists."""
    return name in BESIDE or name.startswith(f"{LINEAGE}/")


def relative_files(directory: Path) -> list[str]:
    """Names of all files below a directory, sorted, without what no manifest lists.

    Raises InvalidInput for links, special files and empty folders: a listing must not depend on
    what lies outside the directory, and a folder of nothing would not be in it.
    """
    names = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInput(f"{path}: only plain files may be listed, not links or devices")
        name = path.relative_to(directory).as_posix()
        if path.is_dir() and not any(path.iterdir()):
            raise InvalidInput(f"{path}: an empty folder, which no listing tells of; remove it")
        if path.is_file() and not is_beside(name):
            names.append(name)
    return names


def list_files(directory: Path, known: dict[str, FileEntry] | None = None) -> dict[str, FileEntry]:
    """Hash every file below a directory; ``known`` entries were hashed while written."""
    known = known or {}
    entries = {}
    for name in relative_files(directory):
        path = directory / name
        entries[name] = known.get(name) or FileEntry(
            size=path.stat().st_size, sha256=digest_file(path)
        )
    return entries


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest.

    Raises InvalidInput when there is none or when its recorded digest does not follow from its
    own listing.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise InvalidInput(f"{directory}: no such directory")
    if not path.is_file():
        raise InvalidInput(f"{directory}: no {MANIFEST_NAME}, so it is not a finished directory")
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(text: bytes, where: str) -> Manifest:
    """The manifest in the bytes of a ``manifest.json``; ``where`` names it in errors.

    Raises InvalidInput when it is none or its recorded digest does not follow from its listing.
    """
    value = parse_object(text, where, "manifest of this project", "")
    recorded = value.pop("digest", None)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))!r}: {first['msg']}"
        raise InvalidInput(f"{where}: not a manifest of this project: {reason}") from error
    if manifest.digest != recorded:
        raise InvalidInput(
            f"{where}: its digest {str(recorded)[:12]} does not follow from its listing"
        )
    return manifest


def verify_directory(directory: Path) -> Manifest:
    """Re-hash every file and compare with the manifest; extra files count as a difference.

    Raises Refused naming the first difference, InvalidInput when there is no usable manifest.
    """
    manifest = read_manifest(directory)
    compare_names(str(directory), relative_files(directory), manifest)
    modes = (directory / MANIFEST_NAME).stat().st_mode & 0o777
    for name, entry in manifest.files.items():
        status = (directory / name).stat()
        # A file system that knows no modes gives all files the manifest's own.
        if odd := status.st_mode & WRONG_MODES & ~modes:
            raise Refused(
                f"{directory}: {name} has mode {stat.S_IMODE(status.st_mode):04o} ({odd:04o} more "
                f"than {MANIFEST_NAME}); nothing in it is a program or for all to write"
            )
        if digest_file(directory / name) != entry.sha256:
            raise differs(str(directory), name)
        if status.st_size != entry.size:
            raise Refused(f"{directory}: {name} has {status.st_size} bytes, not {entry.size}")
    return manifest


def compare_names(where: str, present: Iterable[str], manifest: Manifest) -> None:
    """Raise Refused naming the first file that is listed or there, and not both."""
    for name in sorted(set(present) ^ set(manifest.files)):
        state = "is listed but missing" if name in manifest.files else "is not listed"
        raise Refused(f"{where}: {name} {state}")


def differs(where: str, name: str) -> Refused:
    """The refusal of a file that is not the one its manifest lists."""
    return Refused(f"{where}: {name} does not match its sha256 in {MANIFEST_NAME}")
