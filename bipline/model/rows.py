"""Rows of a matrix that is read in pieces: which are kept of a piece, which lie together, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch


def inside(kept: torch.Tensor | None, first: int, count: int) -> torch.Tensor | None:
    """Which of ``count`` rows from ``first`` on are kept, counted from there; None for all."""
    if kept is None:
        return None
    return kept[(kept >= first) & (kept < first + count)] - first


def runs(indices: list[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbours: ``(first, last, index)``, places in the list and where the run begins."""
    cuts = [place for place, (a, b) in enumerate(pairwise(indices), start=1) if b != a + 1]
    for first, last in pairwise([0, *cuts, len(indices)]):
        if first < last:
            yield first, last, indices[first]


def tensor_bytes(tensor: torch.Tensor) -> memoryview[int]:
    """The bytes of a tensor in row order, as safetensors stores them."""
    data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)
