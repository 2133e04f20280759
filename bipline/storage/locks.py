"""Locks that are gone when the process is: one writer of a directory, one user of a file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bipline.base.errors import InvalidInput


@contextmanager
def locked(directory: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock on a directory; it is gone when the process is.

    Raises InvalidInput with ``refusal`` when another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _lies_at(descriptor, directory):
            raise InvalidInput(refusal)
        yield
    except BlockingIOError:
        raise InvalidInput(refusal) from None
    finally:
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether another process holds the lock of a directory now."""
    try:
        with locked(directory, ""):
            return False
    except InvalidInput:
        return True


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, or a directory, for the length of the block, once no other process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether what was opened is still there: a holder that just ended may have moved it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
