"""A file that goes to the disk while it is written, around the page cache, hashed on the way.

Gigabytes written through the page cache push out what is read next, cost a second of the kernel's
time for every two of them, and wait at the final flush. So two aligned buffers take turns: one is
filled and hashed while the other is written. Where a file system knows no direct writing, the
same buffers go through the page cache.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from bipline.storage.folder import BLOCK_BYTES, DIRECT

BUFFER_BYTES = 8 << 20


class SyncedFile:
    """A new file, written in order. ``size`` and ``sha256`` are of what was written so far."""

    def __init__(self, path: Path) -> None:
        self._descriptor = _open(path)
        self._buffers = [memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(2)]
        self._filled = 0
        self._writer = ThreadPoolExecutor(1, "write-behind")
        self._writing: Future[None] | None = None
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview[int]) -> None:
        """Append bytes. Raises OSError when the disk is full, perhaps one buffer later."""
        view = memoryview(data)
        self.size += len(view)
        while view:
            room = self._buffers[0][self._filled : self._filled + len(view)]
            room[:] = view[: len(room)]
            self._filled += len(room)
            view = view[len(room) :]
            if self._filled == BUFFER_BYTES:
                self._send(BUFFER_BYTES)

    @property
    def sha256(self) -> str:
        """The digest of what was written, in hex. Only of a closed file is it that of the file."""
        return self._sha256.hexdigest()

    def __enter__(self) -> SyncedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write and flush what is left, and close."""
        try:
            if kind is None:
                self._finish()
        finally:
            self._writer.shutdown()
            os.close(self._descriptor)

    def _finish(self) -> None:
        left = self._filled
        whole = left // BLOCK_BYTES * BLOCK_BYTES
        tail = bytes(self._buffers[0][whole:left])
        self._send(whole)
        self._wait()
        self._sha256.update(tail)
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~DIRECT)
        _write_all(self._descriptor, memoryview(tail))
        os.fsync(self._descriptor)

    def _send(self, amount: int) -> None:
        """Have the filled buffer written while the other one is filled."""
        full = self._buffers[0][:amount]
        self._sha256.update(full)
        self._wait()
        self._writing = self._writer.submit(_write_all, self._descriptor, full)
        self._buffers.reverse()
        self._filled = 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)


def _write_all(descriptor: int, data: memoryview[int]) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
