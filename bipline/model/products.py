"""Products of float32 on a processor: by oneDNN, where MKL leaves half of it idle.

PyTorch multiplies float32 with MKL, which takes narrower kernels than AVX-512 on processors that
are not Intel's: 105 GFLOP/s a thread on an AMD EPYC where oneDNN's take 210, both within 5e-7 of
float64 (benchmarks.float32_products). PyTorch asks oneDNN only where it may round what is
multiplied to bfloat16, and of oneDNN's kernels on x86 those of AMX alone make use of that
(https://uxlfoundation.github.io/oneDNN/dev_guide_attributes_fpmath_mode.html). So the leave is
given where there is AVX-512 and no AMX and the processor is none of Intel's, whose width MKL takes,
and where a product shows that nothing was rounded.

PyTorch's attention of a processor makes many small products, which oneDNN begins at a cost that
those of short windows do not make up for (benchmarks.float32_products): these stay with MKL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from bipline.storage.stage_key import processor

LEAVE, USUAL = "medium", "highest"
# A number between two neighbours of bfloat16, and as many of them as a product has terms.
BETWEEN, TERMS = 1 + 2.0**-12, 256
# Tokens of a window from which on PyTorch's attention is cut into products that are large enough.
LONG_WINDOW = 192


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


@contextmanager
def quick_attention(tokens: int) -> Iterator[None]:
    """Within :func:`quick_float32`: PyTorch's attention as usual where windows are short.

    ``tokens`` are those of a window; every other product stays as it was asked for.
    """
    if tokens >= LONG_WINDOW or _precision() != LEAVE:
        yield
        return
    with _UsualAttention():
        yield


class _UsualAttention(TorchFunctionMode):
    """Whatever calls PyTorch's attention, its products are MKL's."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with usual_float32():
            return function(*args, **(kwargs or {}))


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
