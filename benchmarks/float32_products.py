"""Rates of float32 products and of attention by MKL and by oneDNN, and how far from float64.

    .venv/bin/python -m benchmarks.float32_products

The sizes are those of SmolLM2-135M's and the 7 M models' matrices. Writes into RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.machine import described, machine
from benchmarks.tables import Table, write_between
from bipline.model.floor import processor_time
from bipline.model.products import (
    LONG_WINDOW,
    onednn_keeps_float32,
    quick_attention,
    quick_float32,
)

RESULTS = Path(__file__).parent / "RESULTS.md"
TOKENS = 2048
# Inputs and outputs of a matrix.
SIZES = ((576, 1536), (1536, 576), (576, 576), (576, 192), (256, 688), (688, 256), (64, 172))
# Tokens of windows that PyTorch's attention is timed on, of SmolLM2-135M's heads.
WINDOWS = (32, 64, 128, LONG_WINDOW, 256, 512, 2048)
HEADS, KEY_VALUE_HEADS, HEAD_DIM = 9, 3, 64
SECONDS = 0.5
Product = Callable[[], Tensor]
Library = Callable[[], AbstractContextManager[None]]


def main() -> None:
    """Measure one thread, and put the table into RESULTS.md."""
    torch.set_num_threads(1)
    facts = machine(RESULTS.parent)
    columns = (
        "matrix", "linear, MKL", "linear, oneDNN", "moments, MKL", "moments, oneDNN",
        "error, MKL", "error, oneDNN",
    )  # fmt: skip
    told = "takes" if onednn_keeps_float32() else "does not take"
    lines = [*described(facts), f"bipline {told} oneDNN's kernels here."]
    table = Table("", columns, tuple(_row(*size) for size in SIZES)).markdown()
    names = ("tokens of a window", "attention, MKL", "attention, oneDNN", "as bipline does")
    attention = Table("", names, tuple(map(_attention_row, WINDOWS))).markdown()
    text = "\n\n".join([table, attention, "\n".join(lines)])
    print(text)
    write_between(RESULTS, "float32-products", text)


def _row(inputs: int, outputs: int) -> tuple[str, ...]:
    drawing = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, inputs, generator=drawing)
    weight = torch.randn(outputs, inputs, generator=drawing)
    exact = x.double() @ weight.double().T
    by_mkl, by_onednn = nullcontext, quick_float32
    rates = [
        f"{_rate(product, operations, library) / 1e9:.0f}"
        for product, operations in (
            (lambda: linear(x, weight), 2.0 * TOKENS * inputs * outputs),
            (lambda: x.T @ x, 2.0 * TOKENS * inputs**2),
        )
        for library in (by_mkl, by_onednn)
    ]
    errors = [f"{_error(x, weight, exact, library):.1e}" for library in (by_mkl, by_onednn)]
    return (f"{inputs} to {outputs}", *rates, *errors)


def _attention_row(tokens: int) -> tuple[str, ...]:
    """Of as many windows as make up the tokens; all pairs of tokens are counted."""
    drawing, windows = torch.Generator().manual_seed(0), TOKENS // tokens
    queries = torch.randn(windows, HEADS, tokens, HEAD_DIM, generator=drawing)
    shape = (2, windows, KEY_VALUE_HEADS, tokens, HEAD_DIM)
    keys, values = torch.randn(shape, generator=drawing)

    def attend() -> Tensor:
        given = {"is_causal": True, "enable_gqa": True}
        return scaled_dot_product_attention(queries, keys, values, **given)

    @contextmanager
    def as_bipline_does() -> Iterator[None]:
        with quick_float32(), quick_attention(tokens):
            yield

    operations = 4.0 * windows * HEADS * tokens**2 * HEAD_DIM
    libraries: tuple[Library, ...] = (nullcontext, quick_float32, as_bipline_does)
    rates = [f"{_rate(attend, operations, each) / 1e9:.0f}" for each in libraries]
    return (f"{tokens}", *rates)


def _rate(product: Product, operations: float, library: Library) -> float:
    """Operations a second of processor time."""
    with library():
        product()
        count, start = 0, processor_time()
        while (spent := processor_time() - start) < SECONDS:
            product()
            count += 1
    return operations * count / spent


def _error(x: Tensor, weight: Tensor, exact: Tensor, library: Library) -> float:
    """The largest difference from float64, as a share of the outputs' root mean square."""
    with library():
        found = linear(x, weight)
    return float((found - exact).abs().max() / exact.square().mean().sqrt())


if __name__ == "__main__":
    main()
