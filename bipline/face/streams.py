"""Standard streams that never end the work: a reader that goes away costs what it would have read.

Standard output may be a pipe whose reader leaves, a full disk, or closed before we start; the log
may fill its disk. The work behind it is worth more than its display, so it goes on, and the first
failure is told once, where somebody may still listen.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from typing import Any, TextIO


class LossyStream:
    """A text stream over another that loses what it cannot write, and keeps the first failure."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write, or lose, the text; always all of it."""
        self._try(partial(self._stream.write, text))
        return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        self._try(self._stream.flush)

    def close(self) -> None:
        """Close the stream below, whatever it says."""
        self.flush()
        with suppress(OSError, ValueError):
            self._stream.close()

    def __getattr__(self, name: str) -> Any:
        """Whatever else a stream has: its descriptor, its encoding, whether it is a terminal."""
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                action()
            except (OSError, ValueError) as error:
                self.failure = error

    @property
    def reason(self) -> str | None:
        """Why something was lost, unless its reader only went away."""
        if self.failure is None or isinstance(self.failure, BrokenPipeError):
            return None
        return getattr(self.failure, "strerror", None) or str(self.failure)


def open_lossy(descriptor: int) -> LossyStream:
    """A stream of its own on a descriptor, which it closes with itself; names may hold any byte."""
    return LossyStream(
        os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    )


@contextmanager
def standard_streams() -> Iterator[None]:
    """Standard output and error for a command, both lossy; what was lost is told at the end."""
    _open_what_is_closed()
    out, err = (_lossy(descriptor, sys_) for descriptor, sys_ in ((1, sys.stdout), (2, sys.stderr)))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            tell_lost("standard output", out)
            for descriptor, stream in ((1, out), (2, err)):
                _discard(descriptor, stream)


def tell_lost(name: str, stream: LossyStream) -> None:
    """A line on standard error where a stream lost something for another reason than its reader."""
    if stream.reason is not None:
        sys.stderr.write(
            f"warning: {name} could not be written: {stream.reason}; what it showed is lost, "
            "the work is not\n"
        )


def _open_what_is_closed() -> None:
    """A file that is opened must not get the number of a closed standard stream."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _lossy(descriptor: int, stream: TextIO | None) -> LossyStream:
    if stream is None:
        return open_lossy(os.dup(descriptor))
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return LossyStream(stream)


def _discard(descriptor: int, stream: LossyStream) -> None:
    """Let what still waits in a failed stream's buffer go nowhere when Python ends."""
    if stream.failure is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
