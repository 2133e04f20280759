"""Products of float32 on a processor: by oneDNN, where MKL leaves half of it idle.

PyTorch multiplies float32 with MKL, which takes narrower kernels than AVX-512 on processors that
are not Intel's: 105 GFLOP/s a thread on an AMD EPYC where oneDNN's take 210, both within 5e-7 of
float64 (benchmarks.float32_products). PyTorch asks oneDNN only where it may round what is
multiplied to bfloat16, and of oneDNN's kernels on x86 those of AMX alone make use of that
(https://uxlfoundation.github.io/oneDNN/dev_guide_attributes_fpmath_mode.html). So the leave is
given where there is AVX-512 and no AMX and the processor is none of Intel's, whose width MKL takes,
and where a product shows that nothing was rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from bipline.storage.stage_key import processor

LEAVE, USUAL = "medium", "highest"
# A number between two neighbours of bfloat16, and as many of them as a product has terms.
BETWEEN, TERMS = 1 + 2.0**-12, 256


@contextmanager
def quick_float32() -> Iterator[None]:
    """Products of float32 by the quicker library where that keeps them; afterwards as before.

    Nothing changes beside a GPU, whose products the same leave would round, nor where the process
    set oneDNN's precision itself.
    """
    before = _precision() if onednn_keeps_float32() else None
    if before is None:
        yield
        return
    torch.set_float32_matmul_precision(LEAVE)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def usual_float32() -> Iterator[None]:
    """Within :func:`quick_float32` products as PyTorch takes them by itself.

    For a token at a time: before every product oneDNN lays the weights out anew.
    """
    if _precision() != LEAVE:
        yield
        return
    torch.set_float32_matmul_precision(USUAL)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(LEAVE)


@cache
def onednn_keeps_float32() -> bool:
    """Whether oneDNN's float32 kernels here are wider than MKL's, and round nothing."""
    found = torch.cpu.get_capabilities()
    if not found.get("avx512_f") or found.get("amx_bf16") or "Intel" in processor():
        return False
    if torch.cuda.is_available():
        return False
    if not torch.backends.mkldnn.is_available() or (before := _precision()) is None:
        return False
    torch.set_float32_matmul_precision(LEAVE)
    try:
        return _rounds_nothing()
    finally:
        torch.set_float32_matmul_precision(before)


def _rounds_nothing() -> bool:
    between, ones = torch.full((TERMS, TERMS), BETWEEN), torch.ones(TERMS, TERMS)
    return bool((between @ ones == BETWEEN * TERMS).all())


def _precision() -> str | None:
    """What torch may round; None where that was told in the newer way, backend by backend."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
