"""Folders that are read: a local directory or an ``s3://`` prefix, behind one small interface.

Files are read by ranges into memory that the caller owns, so a tensor costs its own bytes and
nothing else, and a model larger than memory is read the same way wherever it lies.

What a local folder gives lies in it: a link that leads elsewhere is refused, but for the blobs of
the hub's cache, and so is all that is no plain file. Folders in it are not looked into, but for
those of ``INNER_FOLDERS``.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import weakref
from pathlib import Path
from typing import Protocol

from bipline.base.errors import InvalidInput, Refused
from bipline.storage.containment import check_contained, contained_files, open_plain
from bipline.storage.digests import CHUNK_BYTES
from bipline.storage.s3 import S3Folder
from bipline.storage.s3_client import S3_SCHEME
from bipline.storage.strict_json import LARGEST_BYTES

# Direct reads and writes begin, end and lie in memory at multiples of this.
BLOCK_BYTES = 4096
DIRECT = getattr(os, "O_DIRECT", 0)
STAGING_BYTES = 8 << 20
# Below this a direct read is all overhead.
SMALL_BYTES = 64 << 10


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

    @property
    def skips_well(self) -> bool:
        """Whether leaving out small gaps between ranges is quicker than reading over them."""

    def will_read(self, offset: int, length: int) -> None:
        """Say that a range will be read soon, so that the place may fetch it meanwhile."""

    def avoid_cache(self) -> None:
        """Read around the page cache from now on, where that is possible."""


def digest_byte_file(file: ByteFile) -> str:
    """The sha256 of an opened file, read to its end."""
    sha256, buffer = hashlib.sha256(), memoryview(bytearray(min(CHUNK_BYTES, file.size)))
    for start in range(0, file.size, CHUNK_BYTES):
        piece = buffer[: file.size - start]
        file.read_into(piece, start)
        sha256.update(piece)
    return sha256.hexdigest()


class Folder(Protocol):
    """A flat folder of files, but for ``INNER_FOLDERS``: what a model directory is."""

    @property
    def location(self) -> str:
        """How the user would write it."""

    def exists(self) -> bool:
        """Whether there is such a folder."""

    def names(self) -> list[str]:
        """Names of the files in it, sorted; those in inner folders as ``FOLDER/NAME``."""

    def read(self, name: str) -> bytes:
        """A small file whole. Raises InvalidInput when it is missing."""

    def open(self, name: str) -> ByteFile:
        """A file to be read by ranges. Raises InvalidInput when it is missing."""


def open_folder(location: str | Path) -> Folder:
    """The folder behind a path or an ``s3://bucket/prefix``.

    Raises InvalidInput for an S3 place without a bucket; a missing folder is no error here.
    """
    if isinstance(location, str) and location.startswith(S3_SCHEME):
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
        """Names of the files, sorted. Raises InvalidInput for links that leave and devices."""
        return contained_files(self.path)

    def read(self, name: str) -> bytes:
        """A small file whole. Raises InvalidInput when it is missing or too large for that."""
        file = self.open(name)
        if file.size > LARGEST_BYTES:
            raise InvalidInput(f"{self.path / name}: {file.size} bytes; at most {LARGEST_BYTES}")
        content = bytearray(file.size)
        file.read_into(memoryview(content), 0)
        return bytes(content)

    def open(self, name: str) -> ByteFile:
        """A file to be read by ranges. Raises InvalidInput when it is missing or lies elsewhere."""
        file = LocalFile(self.path / name)
        check_contained(file.descriptor, self.path, name)
        return file


class LocalFile:
    """A local file, kept open: a file renamed over it does not change what is read.

    What fits in the page cache is read through it, because the next stage reads it again; a file
    of a model larger than that would only push everything else out, at the cost of the kernel's
    time, and is read directly into an aligned buffer.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        self._descriptor = open_plain(path)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size
        self._direct: int | None = None
        self._staging = memoryview(b"")
        self._staged = threading.Lock()

    @property
    def descriptor(self) -> int:
        """The open file, as the system numbers it."""
        return self._descriptor

    @property
    def state(self) -> str:
        """Size and time of the last change, as the file system has them now."""
        status = os.fstat(self._descriptor)
        return f"{status.st_size}:{status.st_mtime_ns}"

    @property
    def skips_well(self) -> bool:
        """Ranges come from the page cache, so only what is wanted need be copied."""
        return self._direct is None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on. Raises Refused when the file has become shorter."""
        done = 0
        while done < len(buffer):
            count = self._read_some(buffer[done:], offset + done)
            if count <= 0:
                raise Refused(f"{self._path}: became shorter while it was read")
            done += count

    def will_read(self, offset: int, length: int) -> None:
        """Let the kernel read the range ahead."""
        if self._direct is None:
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def avoid_cache(self) -> None:
        """Read around the page cache from now on, where the file system can."""
        if self._direct is None and DIRECT:
            # The file that is open already: another may lie at its path by now.
            same = f"/proc/self/fd/{self._descriptor}"
            try:
                self._direct = os.open(same, os.O_RDONLY | os.O_CLOEXEC | DIRECT)
            except OSError:
                return
            weakref.finalize(self, os.close, self._direct)
            self._staging = memoryview(mmap.mmap(-1, STAGING_BYTES))

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        if self._direct is None or len(buffer) < SMALL_BYTES:
            return os.preadv(self._descriptor, [buffer], offset)
        start = offset // BLOCK_BYTES * BLOCK_BYTES
        blocks = -(-(offset + len(buffer) - start) // BLOCK_BYTES)
        with self._staged:
            whole = self._staging[: blocks * BLOCK_BYTES]
            count = os.preadv(self._direct, [whole], start) - (offset - start)
            wanted = max(0, min(count, len(buffer)))
            buffer[:wanted] = self._staging[offset - start : offset - start + wanted]
        return wanted


def forget_cached(path: Path) -> None:
    """Drop a file's clean pages from the page cache, so that its next reading is from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
