"""Folders that are read: a local directory or an ``s3://`` prefix, behind one small interface.

Files are read by ranges into memory that the caller owns, so a tensor costs its own bytes and
nothing else, and a model larger than memory is read the same way wherever it lies.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Protocol

from bipline.artifacts.errors import InvalidInput, Refused

S3_SCHEME = "s3://"


class ByteFile(Protocol):
    """An opened file. ``state`` changes when its content may have changed."""

    @property
    def name(self) -> str:
        """The file's name in its folder."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def state(self) -> str:
        """What the place says of this version of the file: size and time, or an ETag."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on. Raises Refused when the file has become shorter."""

    def will_read(self, offset: int, length: int) -> None:
        """Say that a range will be read soon, so that the place may fetch it meanwhile."""


class Folder(Protocol):
    """A flat folder of files: what a model directory is."""

    @property
    def location(self) -> str:
        """How the user would write it."""

    def exists(self) -> bool:
        """Whether there is such a folder."""

    def names(self) -> list[str]:
        """Names of the files directly in it, sorted."""

    def read(self, name: str) -> bytes:
        """A small file whole. Raises InvalidInput when it is missing."""

    def open(self, name: str) -> ByteFile:
        """A file to be read by ranges. Raises InvalidInput when it is missing."""


def open_folder(location: str | Path) -> Folder:
    """The folder behind a path or an ``s3://bucket/prefix``.

    Raises InvalidInput for an S3 place without a bucket; a missing folder is no error here.
    """
    if isinstance(location, str) and location.startswith(S3_SCHEME):
        from bipline.artifacts.s3 import S3Folder

        return S3Folder(location)
    return LocalFolder(Path(location))


class LocalFolder:
    """A directory of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def location(self) -> str:
        """The path as it was given."""
        return str(self.path)

    def exists(self) -> bool:
        """Whether the directory is there."""
        return self.path.is_dir()

    def names(self) -> list[str]:
        """Names of the files directly in the directory, sorted."""
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    def read(self, name: str) -> bytes:
        """A small file whole. Raises InvalidInput when it is missing."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise InvalidInput(f"{self.path / name}: no such file") from None

    def open(self, name: str) -> ByteFile:
        """A file to be read by ranges. Raises InvalidInput when it is missing."""
        return LocalFile(self.path / name)


class LocalFile:
    """A local file, kept open: a file renamed over it does not change what is read."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InvalidInput(f"{path}: no such file") from None
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    @property
    def state(self) -> str:
        """Size and time of the last change, as the file system has them now."""
        status = os.fstat(self._descriptor)
        return f"{status.st_size}:{status.st_mtime_ns}"

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on. Raises Refused when the file has become shorter."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise Refused(f"{self._path}: became shorter while it was read")
            done += count

    def will_read(self, offset: int, length: int) -> None:
        """Let the kernel read the range ahead."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def forget_cached(path: Path) -> None:
    """Drop a file's clean pages from the page cache, so that its next reading is from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
