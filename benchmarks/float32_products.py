"""Rates of float32 products by MKL and by oneDNN, and how far both are from float64.

    .venv/bin/python -m benchmarks.float32_products

The sizes are those of SmolLM2-135M's and the 7 M models' matrices. Writes into RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.machine import described, machine
from benchmarks.tables import Table, write_between
from bipline.model.floor import processor_time
from bipline.model.products import onednn_keeps_float32, quick_float32

RESULTS = Path(__file__).parent / "RESULTS.md"
TOKENS = 2048
# Inputs and outputs of a matrix.
SIZES = ((576, 1536), (1536, 576), (576, 576), (576, 192), (256, 688), (688, 256), (64, 172))
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
    text = "\n\n".join([table, "\n".join(lines)])
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
