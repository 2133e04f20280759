"""A process that is measured, run to its end.

This process must stay small: Linux hands the peak resident memory of a process on to the programs
that it starts (``ru_maxrss`` outlives ``exec``), so a parent that had once held a gigabyte would
add it to every peak that is reported here. Whatever needs memory therefore runs elsewhere.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LAST_LINES = 20


class Failed(Exception):
    """A process that was to be measured failed, or did not do what is measured."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well: the seconds from its start to its end, and what it printed."""

    seconds: float
    printed: str


def run(command: Sequence[str], data_limit: int | None = None) -> Finished:
    """Run a command to its end; ``data_limit`` is the most private memory it may map, in bytes.

    Raises Failed, with what it said, when it fails.
    """
    start = time.perf_counter()
    finished = subprocess.run(  # noqa: S603 - commands of this project alone
        command, capture_output=True, text=True, check=False, preexec_fn=_limiting(data_limit)
    )
    seconds = time.perf_counter() - start
    if finished.returncode:
        last = "\n".join(finished.stdout.splitlines()[-LAST_LINES:])
        said = finished.stderr.strip() or last or "it said nothing (killed for want of memory?)"
        raise Failed(f"{' '.join(command)}\nended with {finished.returncode}:\n{said}")
    return Finished(seconds, finished.stdout)


def children_seconds() -> float:
    """Processor seconds of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _limiting(data_limit: int | None) -> Callable[[], None] | None:
    if data_limit is None:
        return None
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))
