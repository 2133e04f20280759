"""Work in a process of its own, for what may never end, die, or fill the memory.

The child is a fork: it has all that this process has loaded, and gives back bytes. What it says
on its way, as the trace of a library's panic, reaches nobody.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

Item = TypeVar("Item")
HEAD = struct.Struct("<cQ")
DONE, FAILED = b"+", b"-"


class ChildFailure(Exception):
    """What became of a child that did not give its answer, in words."""


def in_child(
    work: Callable[[Item], bytes], items: Iterable[tuple[Item, float]], room: int
) -> Iterator[bytes]:
    """What ``work`` gives for each item, done in a child within so many seconds an item.

    ``room`` is how many bytes it may take. Raises ChildFailure where it raises, dies or is late.
    """
    items = list(items)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it runs nothing of other threads
        child = os.fork()
    if not child:
        os.close(reader)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(1 + int(sum(seconds for _, seconds in items)))  # should the parent be gone
        _answer(work, [item for item, _ in items], writer, room)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            for _, seconds in items:
                yield _received(pipe, seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _answer(work: Callable[[Item], bytes], items: list[Item], writer: int, room: int) -> None:
    """The child's life."""
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        _limit_memory(room)
        for item in items:
            _send(writer, DONE, work(item))
    except BaseException as error:  # a panic of Rust is no Exception
        said = str(error).strip().splitlines()
        _send(writer, FAILED, (said[0] if said else type(error).__name__).encode())
    finally:
        os._exit(0)


def _limit_memory(room: int) -> None:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = int(status.partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + room, held + room))


def _send(writer: int, outcome: bytes, answer: bytes) -> None:
    with os.fdopen(os.dup(writer), "wb") as pipe:
        pipe.write(HEAD.pack(outcome, len(answer)) + answer)


def _received(pipe: IO[bytes], seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    outcome, length = HEAD.unpack(_read(pipe, HEAD.size, deadline, seconds))
    answer = _read(pipe, length, deadline, seconds)
    if outcome == FAILED:
        raise ChildFailure(answer.decode("utf-8", "replace")[:200])
    return answer


def _read(pipe: IO[bytes], length: int, deadline: float, seconds: float) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ChildFailure(f"it does not come to an end ({seconds:.0f} seconds)")
        part = pipe.read(min(length - len(parts), 1 << 20))
        if not part:
            raise ChildFailure("it ends the process that runs it, perhaps for want of memory")
        parts += part
    return bytes(parts)
