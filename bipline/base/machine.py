"""What this machine and process say of their memory (Linux's ``/proc``)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from bipline.base.errors import EnvironmentFailure

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int:
    """Bytes that processes may still take without swapping; clean cached pages count as free."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise EnvironmentFailure("/proc/meminfo does not say MemAvailable")


def anonymous_memory() -> int:
    """Resident private memory of this process now, in bytes."""
    resident, shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3]
    return (int(resident) - int(shared)) * PAGE_BYTES


def return_freed_memory() -> None:
    """Give freed memory back to the system; what lies between used pieces is kept otherwise.

    Does nothing where the C library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
