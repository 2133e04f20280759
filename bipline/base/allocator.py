"""The allocator: memory that a block's activations give back is kept for those of the next.

glibc gives large pieces back to the system at once, and the system clears every page of the next
one: at hidden size 576 in bfloat16 that was a seventh of a forward pass. What is computed is the
same bits.
"""

from __future__ import annotations

import ctypes
from functools import cache

# Numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Pieces below this come from what is kept: the most that glibc takes.
KEPT_PIECES = 32 << 20
# So much that is free stays with the process.
KEPT = 128 << 20


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep up to 128 MiB that is free; whether it does: another library has its own way.

    Of the whole process, and once: a limit that was set from outside is written over.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    sizes = {M_MMAP_THRESHOLD: KEPT_PIECES, M_TRIM_THRESHOLD: KEPT}
    return all(mallopt(name, size) for name, size in sizes.items())
