"""Atomic directories: a reader sees the finished directory or none at all.

A directory is built under a temporary name beside its final one, every file and the folder
are flushed to the disk, the manifest is written last, and one rename makes it appear. The
temporary directory is locked while it is written: a second process on the same output is
refused, and what a killed process left behind is cleared by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bipline.artifacts.errors import EnvironmentFailure, InvalidInput
from bipline.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest, list_files

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
    """Write a small text file in one go: temporary name, flush, rename."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class DirectoryWriter:
    """The directory while it is written. ``path`` is where its files go for now."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.info: dict[str, Any] = {}
        self._hashed: dict[str, FileEntry] = {}

    def add_hashed(self, name: str, size: int, sha256: str) -> None:
        """Record a file that was hashed while it was written, so that it is not read again."""
        self._hashed[name] = FileEntry(size=size, sha256=sha256)

    def manifest(self) -> Manifest:
        """The manifest of what lies in the directory now."""
        files = list_files(self.path, self._hashed)
        return Manifest(kind=self.kind, files=files, info=self.info)


@contextmanager
def atomic_directory(final: Path, kind: str) -> Iterator[DirectoryWriter]:
    """Write a directory that appears whole, with its manifest, or not at all.

    Raises InvalidInput when ``final`` exists and is not empty or another process is writing it;
    EnvironmentFailure when the disk is full. Whatever happens inside, nothing half written stays.
    """
    refuse_occupied(final)
    final = final.absolute()
    temporary = final.with_name(f".{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _locked_empty(temporary):
            yield from _write_then_rename(temporary, final, kind)
    except OSError as error:
        raise environment_failure(error) or error from None


def _write_then_rename(temporary: Path, final: Path, kind: str) -> Iterator[DirectoryWriter]:
    try:
        writer = DirectoryWriter(temporary, kind)
        yield writer
        write_text(temporary / MANIFEST_NAME, writer.manifest().to_json())
        _flush_tree(temporary)
        temporary.rename(final)
        _flush(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_occupied(final: Path) -> None:
    """Raise InvalidInput unless ``final`` can become a new directory."""
    if final.is_dir() and any(final.iterdir()):
        raise InvalidInput(
            f"{final}: the output directory is not empty; choose another or empty it"
        )
    if final.exists() and not final.is_dir():
        raise InvalidInput(f"{final}: the output exists and is not a directory")


@contextmanager
def locked(directory: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock on a directory; it is gone when the process is.

    Raises InvalidInput with ``refusal`` when another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InvalidInput(refusal) from None
    finally:
        os.close(descriptor)


@contextmanager
def _locked_empty(temporary: Path) -> Iterator[None]:
    """Create ``temporary``, or take over what a killed process left, under an exclusive lock."""
    temporary.mkdir(exist_ok=True)
    with locked(temporary, f"{temporary}: another process is writing this output"):
        for leftover in temporary.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield


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
