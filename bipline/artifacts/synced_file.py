"""A file that reaches the disk while it is written: hashed, flushed in the background.

A kernel left alone keeps gigabytes of written pages in memory and the disk idle, and the final
flush then waits for all of them. Flushing behind the writer keeps the disk busy from the start.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

FLUSH_BYTES = 64 << 20


class SyncedFile:
    """A new file, written in order. ``size`` and ``sha256`` are of what was written so far."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._flusher = ThreadPoolExecutor(1, "write-behind")
        self._flushing: Future[None] | None = None
        self._unflushed = 0
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview[int]) -> None:
        """Append bytes. Raises OSError when the disk is full."""
        view = memoryview(data)
        self._sha256.update(view)
        self.size += len(view)
        self._unflushed += len(view)
        while view:
            view = view[self._file.write(view) :]
        if self._unflushed >= FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            self._collect()
            self._flushing = self._flusher.submit(os.fdatasync, self._file.fileno())
            self._unflushed = 0

    @property
    def sha256(self) -> str:
        """The digest of what was written, in hex."""
        return self._sha256.hexdigest()

    def __enter__(self) -> SyncedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush what is left and close; the first failed flush is raised."""
        try:
            if kind is None:
                self._collect()
                os.fsync(self._file.fileno())
        finally:
            self._flusher.shutdown()
            self._file.close()

    def _collect(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
            self._flushing = None
