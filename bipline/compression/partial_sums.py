"""Partial sums per chunk of windows, and their one way of being added: in chunk order.

Floating-point addition depends on its order. Because a sum is always taken per fixed chunk first
and chunks are added in their order, one process, several, and steps on several machines give the
same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.compression.criteria.interface import Sums
from bipline.model.hidden_states import CHUNK_WINDOWS

ChunkSums = dict[int, Sums]


class Accumulator:
    """Collects one block's sums, chunk by chunk; ``chunks`` holds them by their number."""

    def __init__(self) -> None:
        self.chunks: ChunkSums = {}

    def add(self, number: int, sums: Mapping[str, torch.Tensor]) -> None:
        """Add one micro-batch's sums to those of its chunk."""
        total = self.chunks.setdefault(number, {})
        for name, value in sums.items():
            value = value.to("cpu", torch.float64)
            total[name] = total[name] + value if name in total else value


def reduce_chunks(chunks: ChunkSums) -> Sums:
    """Add chunks in their order."""
    total: Sums = {}
    for number in sorted(chunks):
        for name, value in chunks[number].items():
            total[name] = total[name] + value if name in total else value
    return total


def check_finite(sums: Sums, block: int) -> None:
    """Raise InvalidInput when a block's activations were not finite."""
    if not all(bool(value.isfinite().all()) for value in sums.values()):
        raise InvalidInput(
            f"block {block}: activations are not finite; the weights hold NaN or infinity, "
            "or dtype overflows"
        )


def share_of(windows: int, index: int, count: int) -> range:
    """The chunks that worker ``index`` of ``count`` takes: neighbours, as even as can be.

    Raises InvalidInput when there are fewer chunks than workers.
    """
    chunks = -(-windows // CHUNK_WINDOWS)
    if chunks < count:
        raise InvalidInput(
            f"{windows} windows are {chunks} chunks of {CHUNK_WINDOWS}, too few for {count} "
            "workers; give more samples or fewer workers"
        )
    return range(index * chunks // count, (index + 1) * chunks // count)


def windows_of(token_ids: torch.Tensor, chunks: range) -> torch.Tensor:
    """The windows of neighbouring chunks: ``[windows, seqlen]``."""
    return token_ids[chunks.start * CHUNK_WINDOWS : chunks.stop * CHUNK_WINDOWS]


def pack(chunks: ChunkSums, numbers: range, layout: list[tuple[str, Any]]) -> torch.Tensor:
    """Chunks as rows of one float64 matrix; chunks that are not there are rows of zeros."""
    width = sum(int(torch.Size(shape).numel()) for _, shape in layout)
    rows = torch.zeros(len(numbers), width, dtype=torch.float64)
    for row, number in enumerate(numbers):
        if number in chunks:
            rows[row] = torch.cat([chunks[number][name].reshape(-1) for name, _ in layout])
    return rows


def unpack(rows: torch.Tensor, numbers: range, layout: list[tuple[str, Any]]) -> ChunkSums:
    """The inverse of :func:`pack` when no row is missing."""
    chunks: ChunkSums = {}
    for row, number in zip(rows, numbers, strict=True):
        parts = row.split([int(torch.Size(shape).numel()) for _, shape in layout])
        chunks[number] = {
            name: part.view(shape) for (name, shape), part in zip(layout, parts, strict=True)
        }
    return chunks
