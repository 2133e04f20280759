"""Memory: what a pass through the blocks needs, counted before it starts, and what there is.

The count is of private memory (weights, activations, hidden states), because that is what kills
a process; pages of files can be dropped by the kernel at any time.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.base.machine import anonymous_memory, free_memory
from bipline.model.block_loop import HEAD_TOKENS, BlockLoop, micro_batch_of
from bipline.model.block_reader import block_shapes, place_elements
from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint
from bipline.model.devices import SLOTS
from bipline.model.families import block_lying

# Of what the machine has free: other processes need some, and the count is an estimate.
SHARE_OF_AVAILABLE = 0.9
# What importing the libraries has not allocated yet: kernels' scratch space, threads, pieces.
ROOM_BYTES = 300 << 20
SAMPLING_SECONDS = 0.01


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of private memory by purpose; ``hidden_states`` can go to the disk instead."""

    libraries: int
    weights: int
    activations: int
    hidden_states: int

    @property
    def least(self) -> int:
        """With hidden states on disk, one chunk of them counted under activations."""
        return self.libraries + self.weights + self.activations

    @property
    def total(self) -> int:
        """With all hidden states in memory."""
        return self.least + self.hidden_states

    def __str__(self) -> str:
        parts = [
            ("libraries", self.libraries),
            ("weights of two blocks", self.weights),
            ("activations", self.activations),
            ("hidden states", self.hidden_states),
        ]
        return ", ".join(f"{name} {gigabytes(size)}" for name, size in parts)


def gigabytes(size: int) -> str:
    """A size as users read it: in megabytes where it is no hundredth of a gigabyte."""
    return f"{size / 1e6:.2f} MB" if size < 1e7 else f"{size / 1e9:.2f} GB"


def memory_need(loop: BlockLoop, token_ids: torch.Tensor, logits: bool) -> MemoryNeed:
    """What running windows ``[windows, seqlen]`` through a loop's blocks needs, in bytes.

    ``logits`` says whether the pass ends in losses and not with the last block. On a GPU
    activations are not in this memory, and are counted all the same.
    """
    windows, seqlen = token_ids.shape
    return pass_need(loop.checkpoint, loop.dtype, (windows, seqlen), logits, loop.micro_batch)


def pass_need(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    drawn: tuple[int, int],
    logits: bool,
    micro_batch: int | None = None,
    libraries: int | None = None,
) -> MemoryNeed:
    """The same from the header alone, for ``drawn`` windows of so many tokens.

    ``libraries`` is what the process holds without the pass; this process's where it is None.
    """
    shape, size = checkpoint.shape, dtype.itemsize
    windows, seqlen = drawn
    tokens = micro_batch_of(seqlen, micro_batch) * seqlen
    attention = shape.num_attention_heads * shape.head_dim
    # Live at once: the observed inputs and outputs of both halves, the residual stream and its
    # norms in float32, and the float32 logits of the last step.
    channels = max(shape.intermediate_size, shape.shared_channels, shape.dense_channels)
    in_block = tokens * (3 * channels + 3 * attention) * size
    if checkpoint.family.eager_attention:
        # Scores of all heads as they are made, capped, and behind a softmax in float32.
        in_block += tokens * seqlen * shape.num_attention_heads * (2 * size + 4)
    stream = tokens * shape.hidden_size * (2 * size + 8)
    head = HEAD_TOKENS * (size + 8) + shape.hidden_size * size
    chunk = 2 * min(windows, 16) * seqlen * shape.hidden_size * size
    converted = [
        checkpoint.tensors[name].num_bytes
        for index in range(shape.num_hidden_layers)
        for name in checkpoint.stored_names(index).values()
        if TORCH_DTYPES[checkpoint.tensors[name].dtype] != dtype
    ]
    largest = max(_regrouped(checkpoint, index) for index in range(shape.num_hidden_layers))
    places = SLOTS * (place_elements(block_shapes(checkpoint)) + largest) * size
    return MemoryNeed(
        libraries=anonymous_memory() + ROOM_BYTES if libraries is None else libraries,
        weights=places + max(converted, default=0),
        activations=max(in_block + stream, head * shape.vocab_size * logits) + chunk,
        hidden_states=windows * seqlen * shape.hidden_size * size,
    )


def _regrouped(checkpoint: Checkpoint, index: int) -> int:
    """Elements of a block that are copied, as their rows lie group by group."""
    lying = block_lying(checkpoint.family, checkpoint.config, index)
    stored = checkpoint.stored_names(index).items()
    return sum(checkpoint.tensors[n].elements for name, n in stored if lying.groups_of(name) > 1)


def memory_limit(max_memory: int | None) -> int:
    """Bytes that may be taken: the user's limit, or less where the machine has not that much."""
    available = available_bytes()
    return available if max_memory is None else min(max_memory, available)


def states_fit(need: MemoryNeed, max_memory: int | None) -> bool:
    """Whether hidden states stay in memory; False sends them to the disk.

    Raises InvalidInput when the user's limit is below what is needed in any case, and
    EnvironmentFailure when the machine has not that much.
    """
    limit = memory_limit(max_memory)
    if need.least <= limit:
        return need.total <= limit
    available = available_bytes()
    least = f"at least {gigabytes(need.least)} of memory are needed ({need})"
    if max_memory is not None and max_memory <= available:
        raise InvalidInput(f"--max-memory {gigabytes(max_memory)}: {least}")
    raise EnvironmentFailure(
        f"{least}, and {gigabytes(available)} are free here; lower the micro-batch or the seqlen"
    )


def available_bytes() -> int:
    """Private memory that this process may still take, what it holds already included."""
    free = [int(free_memory() * SHARE_OF_AVAILABLE) + anonymous_memory()]
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        free.append(limit)
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and (text := group.read_text().strip()).isdigit():
        free.append(int(int(text) * SHARE_OF_AVAILABLE))
    return min(free)


class PeakMemory:
    """The highest memory seen while watching: ``anonymous`` by sampling, in bytes."""

    def __init__(self) -> None:
        self.anonymous = anonymous_memory()

    @property
    def resident(self) -> int:
        """The highest resident memory of the process since it began, file pages included."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def device(self) -> int:
        """The highest memory PyTorch held on the GPU; 0 without one."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0

    def sample(self) -> None:
        """Look now."""
        self.anonymous = max(self.anonymous, anonymous_memory())


@contextmanager
def watching_memory() -> Iterator[PeakMemory]:
    """Sample this process's memory every ten milliseconds for the length of the block."""
    peak, stopped = PeakMemory(), threading.Event()

    def watch() -> None:
        while not stopped.wait(SAMPLING_SECONDS):
            peak.sample()

    thread = threading.Thread(target=watch, daemon=True, name="memory")
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()
