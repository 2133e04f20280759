"""Memory that is free stays with the process, where its library can be told so."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from bipline.base import allocator

# Page faults of large pieces that come and go, before and after.
SCRIPT = """
import json, resource
import torch
from bipline.base.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        pieces = [torch.ones(1 << 20) for _ in range(4)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
kept = keep_freed_memory()
faults()
print(json.dumps([kept, before, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_pieces_are_used_again() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True)
    kept, before, after = json.loads(ran.stdout)
    assert kept and after < before / 4


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    allocator.keep_freed_memory.cache_clear()
    assert not allocator.keep_freed_memory()
    allocator.keep_freed_memory.cache_clear()
