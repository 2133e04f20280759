"""Atomic directories: a reader sees the finished directory or none at all.

A directory is built under a temporary name beside its final one, every file and the folder
are flushed to the disk, the manifest is written last, and one rename makes it appear. The
temporary directory is locked while it is written: a second process on the same output is
refused, and what a killed process left behind is cleared by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.storage.digests import CHUNK_BYTES, digest_file
from bipline.storage.locks import locked
from bipline.storage.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    compare_names,
    list_files,
    read_manifest,
    relative_files,
)
from bipline.storage.names import is_plain_name
from bipline.storage.sharing import cloned, linked
from bipline.storage.strict_json import DELETE, read_json

# What an operating system says when the surroundings, not the input, are at fault.
ENVIRONMENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM}


def environment_failure(error: OSError) -> EnvironmentFailure | None:
    """Translate a full disk or a failing device into exit code 3; None for other errors."""
    if error.errno not in ENVIRONMENT_ERRNOS:
        return None
    where = f" at {error.filename}" if error.filename else ""
    return EnvironmentFailure(
        f"{os.strerror(error.errno).lower()}{where}: nothing was left half written; "
        "free the resource and run again"
    )


def write_text(path: Path, text: str) -> None:
    """Write a small text file in one go: temporary name, flush, rename.

    What stands under the temporary name is a killed run's, or a link that somebody put there: it
    goes, and nothing is written through it.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class DirectoryWriter:
    """The directory while it is written. ``path`` is where its files go for now.

    ``shares``: it becomes one that nobody writes, so it may hold links to files of others like it.
    """

    shares = False

    def __init__(self, path: Path, kind: str, journal: Journal | None = None) -> None:
        self.path = path
        self.kind = kind
        self.info: dict[str, Any] = {}
        self._journal = journal
        self._hashed: dict[str, FileEntry] = dict(journal.finished) if journal else {}

    def has(self, name: str) -> bool:
        """Whether an earlier run finished this file."""
        return name in self._hashed

    @property
    def resumable(self) -> bool:
        """Whether finished files are worth keeping when the work stops."""
        return bool(self._journal and self._journal.finished)

    def add_hashed(self, name: str, size: int, sha256: str) -> None:
        """Record a file that was hashed while it was written, so that it is not read again."""
        self._hashed[name] = FileEntry(size=size, sha256=sha256)
        if self._journal:
            self._journal.add(name, self._hashed[name])

    def close(self, manifest: Manifest) -> None:
        """Tell the journal what the directory has become."""
        if self._journal:
            self._journal.close(manifest.digest)

    def discard(self) -> None:
        """Remove what was written and what the journal says of it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._journal:
            self._journal.path.unlink(missing_ok=True)

    def manifest(self) -> Manifest:
        """The manifest of what lies in the directory now."""
        files = list_files(self.path, self._hashed)
        return Manifest(kind=self.kind, files=files, info=self.info)


class Journal:
    """The finished files of a directory that is being written, kept outside of it.

    ``key`` says what the directory is to become: files of another key are not taken up.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.finished: dict[str, FileEntry] = {}

    def add(self, name: str, entry: FileEntry) -> None:
        """Record a file that is whole and on the disk."""
        self.finished[name] = entry
        self._write("")

    def close(self, digest: str) -> None:
        """Record the digest of the whole directory, which is about to get its final name."""
        self._write(digest)

    def _write(self, digest: str) -> None:
        files = {name: held.model_dump() for name, held in self.finished.items()}
        value = {"key": self.key, "files": files, "digest": digest}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(value, indent=1) + "\n")

    def take_up(self, directory: Path) -> None:
        """Take up the files in ``directory`` that an earlier run finished, re-hashing each."""
        if not self.path.is_file():
            return
        value = _read_journal(self.path)
        if value.key != self.key:
            return
        for name, entry in value.files.items():
            file = directory / name
            if not file.is_symlink() and file.is_file() and digest_file(file) == entry.sha256:
                self.finished[name] = entry


def is_finished(final: Path, journal: Path, key: str | None = None) -> bool:
    """Whether ``final`` is what a run with this journal made, under ``key`` where one is given."""
    if not (journal.is_file() and (final / MANIFEST_NAME).is_file()):
        return False
    recorded = _read_journal(journal)
    if key is not None and recorded.key != key:
        return False
    return recorded.digest == read_manifest(final).digest


class _Journal(BaseModel):
    """What a journal's file holds."""

    model_config = ConfigDict(extra="forbid")

    key: str
    files: dict[str, FileEntry]
    digest: str


def _read_journal(path: Path) -> _Journal:
    try:
        journal = _Journal.model_validate(read_json(path, "journal"))
        odd = next((name for name in journal.files if not is_plain_name(name)), None)
    except ValidationError as error:
        odd = str(error.errors()[0]["loc"])
    if odd is not None:
        raise InvalidInput(f"{path}: not a journal: {odd!r}; {DELETE}")
    return journal


@contextmanager
def atomic_directory(
    final: Path,
    kind: str,
    journal: Path | None = None,
    key: str = "",
    finishing: Callable[[Path, Manifest], None] | None = None,
) -> Iterator[DirectoryWriter]:
    """Write a directory that appears whole, with its manifest, or not at all.

    With ``journal`` the files that a killed run finished under the same ``key`` stay, and an
    interrupted run leaves them; without it nothing half written stays, whatever happens inside.
    ``finishing`` is called with the whole directory and its manifest before it appears.
    Raises InvalidInput when ``final`` exists and is not empty or another process is writing it;
    EnvironmentFailure when the disk is full.
    """
    refuse_occupied(final)
    final = final.absolute()
    temporary = final.with_name(f".{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _make_own(temporary)
        with locked(temporary, f"{temporary}: another process is writing this output"):
            taken = Journal(journal, key) if journal else None
            if taken:
                taken.take_up(temporary)
            _clear(temporary, set(taken.finished) if taken else set())
            yield from _write_then_rename(DirectoryWriter(temporary, kind, taken), final, finishing)
    except OSError as error:
        raise environment_failure(error) or error from None


def _make_own(temporary: Path) -> None:
    """Make the folder, or take one that is ours: what lies in it is removed."""
    try:
        temporary.mkdir()
    except FileExistsError:
        status = temporary.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise InvalidInput(
                f"{temporary}: is a link, a file or another user's; remove it"
            ) from None


def _write_then_rename(
    writer: DirectoryWriter, final: Path, finishing: Callable[[Path, Manifest], None] | None
) -> Iterator[DirectoryWriter]:
    try:
        yield writer
        manifest = writer.manifest()
        write_text(writer.path / MANIFEST_NAME, manifest.to_json())
        if finishing:
            finishing(writer.path, manifest)
        writer.close(manifest)
        _flush_tree(writer.path)
        writer.path.rename(final)
        _flush(final.parent)
    except BaseException as error:
        if not writer.resumable or isinstance(error, (InvalidInput, Refused)):
            writer.discard()
        raise


def occupied(directory: Path | None) -> bool:
    """Whether there is a directory that holds something."""
    return directory is not None and directory.is_dir() and any(directory.iterdir())


def refuse_occupied(final: Path) -> None:
    """Raise InvalidInput unless ``final`` can become a new directory."""
    if occupied(final):
        raise InvalidInput(
            f"{final}: the output directory is not empty; choose another or empty it"
        )
    if final.exists() and not final.is_dir():
        raise InvalidInput(f"{final}: the output exists and is not a directory")


def _clear(directory: Path, kept: set[str]) -> None:
    """Remove what a killed run left half written."""
    for leftover in sorted(directory.rglob("*"), reverse=True):
        if leftover.is_dir() and not leftover.is_symlink():
            with suppress(OSError):  # it holds files that are kept
                leftover.rmdir()
        elif leftover.relative_to(directory).as_posix() not in kept:
            leftover.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        _flush(path)
    _flush(directory)


def copy_directory(source: Path, target: Path, replace: bool = False) -> None:
    """Copy a finished directory with its manifest; it appears whole or not at all.

    Files are copies: what the user has is written in without a change to a Store. With
    ``replace`` what an interrupted run left at ``target`` goes first.
    """
    if source.absolute() == target.absolute():
        return
    if replace:
        shutil.rmtree(target, ignore_errors=True)
    manifest = read_manifest(source)
    compare_names(str(source), relative_files(source), manifest)
    with atomic_directory(target, manifest.kind) as writer:
        writer.info = manifest.info
        for name, entry in manifest.files.items():
            copy_listed(source / name, writer, name, entry)


def _copied(source: Path, target: Path) -> str:
    """Copy the bytes; their sha256."""
    sha256 = hashlib.sha256()
    with source.open("rb") as read, target.open("xb") as write:
        while chunk := read.read(CHUNK_BYTES):
            sha256.update(chunk)
            write.write(chunk)
    return sha256.hexdigest()


def copy_listed(source: Path, writer: DirectoryWriter, name: str, listed: FileEntry) -> None:
    """Copy a file and hash it on the way, so that what is written is what a manifest listed.

    Blocks are shared where the file system can, and between Stores the file itself. Raises Refused
    where it is not the one that is listed.
    """
    target = writer.path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # A killed run may have left a link to the very file that is read: it is never written into.
    target.unlink(missing_ok=True)
    if cloned(source, target) or (writer.shares and linked(source, target)):
        sha256 = digest_file(target)
    else:
        sha256 = _copied(source, target)
    if sha256 != listed.sha256:
        raise Refused(f"{source}: does not match its sha256 in the manifest beside it")
    writer.add_hashed(name, target.stat().st_size, listed.sha256)
