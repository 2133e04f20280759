"""Is a difference in perplexity more than chance? Models against the dense one, window by window.

    .venv/bin/python -m benchmarks.paired DENSE MODEL... --text FILE

All read the same windows, so the differences of their NLL are paired. The standard error of their
mean is taken over blocks of neighbouring windows, because a text's tone runs on from one to the
next. The models are directories of plain transformers weights; per-layer ones hold code that came
from bipline, and are read without running it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor

from benchmarks.tables import Table
from bipline.base.errors import BiplineError, InvalidInput
from bipline.compression.computing import Computing
from bipline.model.opening import open_checkpoint
from bipline.model.products import quick_float32
from bipline.model.tokenizer import tokenizer_of
from bipline.quality.perplexity import text_windows, token_losses
from bipline.storage.documents import read_documents

SEQLEN = 128
# Windows that count as one.
TOGETHER = 8


@quick_float32()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each model."""
    given = _parser().parse_args(arguments)
    tokenizer = tokenizer_of(open_checkpoint(given.dense).folder)
    windows = text_windows(tokenizer, read_documents(given.text), SEQLEN, "none")
    dense = window_losses(given.dense, windows)
    rows = [(given.dense.name, f"{perplexity_of(dense):.2f}", "", "", "")]
    for folder in given.models:
        losses = window_losses(folder, windows)
        mean, error = paired_difference(losses, dense)
        value = perplexity_of(losses)
        change = f"{value - perplexity_of(dense):+.2f}"
        rows.append((folder.name, f"{value:.2f}", change, f"{mean:+.5f}", f"{error:.5f}"))
    columns = ("model", "perplexity", "increase", "change of NLL", "standard error")
    Console().print(Table(str(given.text.name), columns, tuple(rows)).rich())


def window_losses(folder: Path, windows: Tensor) -> Tensor:
    """Mean NLL of every window of tokens, float64 ``[windows]``, in nats a token."""
    loop = Computing().loop(open_checkpoint(folder))
    return token_losses(loop, windows, f"losses of {folder.name}").double().mean(1)


def perplexity_of(losses: Tensor) -> float:
    """Perplexity from windows of equal length."""
    return math.exp(float(losses.mean()))


def paired_difference(losses: Tensor, dense: Tensor) -> tuple[float, float]:
    """The mean of the differences and its standard error over blocks of windows."""
    differences = losses - dense
    count = len(differences) // TOGETHER
    if count < 2:
        raise InvalidInput(
            f"a standard error needs {2 * TOGETHER} windows of {SEQLEN} tokens; the text has "
            f"{len(differences)}"
        )
    blocks = differences[: count * TOGETHER].view(count, TOGETHER).mean(1)
    return float(differences.mean()), float(blocks.std() / math.sqrt(count))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="paired differences in NLL from a dense model")
    parser.add_argument("dense", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    return parser


if __name__ == "__main__":
    try:
        main()
    except BiplineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
