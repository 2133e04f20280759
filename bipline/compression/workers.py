"""Data-parallel calibration under torchrun: every process runs its own chunks of windows.

The processes meet once a block, to add their partial sums over gloo; the weights are read by
each. Because partial sums are per chunk and are added in chunk order, the plan is the one that a
single process would make.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as distributed

from bipline.base.errors import EnvironmentFailure
from bipline.compression.partial_sums import ChunkSums, pack, unpack

# A worker that died must not leave the others waiting for ever.
LONGEST_WAIT = timedelta(minutes=30)


@dataclass(frozen=True)
class Workers:
    """Which of how many processes this is. One alone needs nobody."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what all of them found."""
        return self.rank == 0

    def gather(self, chunks: ChunkSums, windows_in_chunks: range) -> ChunkSums:
        """All processes' chunks; ``windows_in_chunks`` are the numbers of all chunks."""
        if self.count == 1:
            return chunks
        first = chunks[min(chunks)]
        layout = [(name, first[name].shape) for name in sorted(first)]
        rows = pack(chunks, windows_in_chunks, layout)
        with _answering():
            # Every row is held by one process and zero elsewhere, so this sum is exact.
            distributed.all_reduce(rows)
        return unpack(rows, windows_in_chunks, layout)

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers: the last block that everybody finished."""
        if self.count == 1:
            return number
        held = torch.tensor([number])
        with _answering():
            distributed.all_reduce(held, op=distributed.ReduceOp.MIN)
        return int(held)


@contextmanager
def joined_workers() -> Iterator[Workers]:
    """Join the processes that torchrun started; alone where it did not."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Workers()
        return
    with _answering():
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield Workers(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, distributed.DistBackendError) as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentFailure(f"another worker does not answer: {reason}") from error
