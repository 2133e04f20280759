"""The floor: what a stage cannot beat on this machine, from rates measured in the same run.

score = bytes read + operations of the forward pass; prune = kept bytes read + bytes written and
flushed. The sums are of times one after the other, so work that overlaps can come close to them.
Every rate is the best of five, at the block's own shapes, dtype and threads; a read is timed around
the page cache, and a write counts when it is on the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bipline.model.block_loop import BlockLoop, micro_batch_of
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import CPU, multiplies_bfloat16
from bipline.model.products import quick_float32
from bipline.model.shapes import ModelShape
from bipline.storage.folder import LocalFile, forget_cached
from bipline.storage.synced_file import SyncedFile

REPEATS = 5
SAMPLE_BYTES = 256 << 20
READ_BYTES = 8 << 20
QUICK_TOKENS = 2048
USUAL_DISK = 4e8
# Gives seconds.
Clock = Callable[[], float]
# Products with the head for gradients of a loss: logits, and the way back to what they are of.
GRADIENT_HEADS = 2


@dataclass(frozen=True)
class Rates:
    """What this machine does at best: bytes a second, and operations a second.

    ``wide`` is of products in float32, for what is multiplied in no narrower dtype whatever windows
    are run in, ``quick`` of those in bfloat16, for what is multiplied in it although windows are
    run in float32; None where that makes no difference. ``activated`` is how many numbers a second
    go through an FFN's activation and gate, None where an estimate does without.
    """

    read: float
    write: float
    compute: float
    wide: float | None = None
    quick: float | None = None
    activated: float | None = None

    @property
    def in_float32(self) -> float:
        """Operations a second of products in float32."""
        return self.compute if self.wide is None else self.wide


@dataclass(frozen=True)
class Counted:
    """Floating-point operations: all of them, and among them those that are never narrower.

    And those that are in the dtype that is quickest.
    """

    all: float = 0.0
    wide: float = 0.0
    quick: float = 0.0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.all + other.all, self.wide + other.wide, self.quick + other.quick)

    def times(self, count: float) -> Counted:
        """So many of the same."""
        return Counted(self.all * count, self.wide * count, self.quick * count)


@dataclass(frozen=True)
class Work:
    """What a stage has to do at least: bytes read and written, floating-point operations.

    ``wide`` are those of the operations that are in float32 at least, ``quick`` those that are in
    bfloat16 where that is quicker.
    """

    read: int = 0
    written: int = 0
    operations: float = 0
    wide: float = 0
    quick: float = 0

    def seconds(self, rates: Rates) -> float:
        """The floor of this work in seconds."""
        computing = (self.operations - self.wide - self.quick) / rates.compute
        computing += self.wide / rates.in_float32 + self.quick / (rates.quick or rates.compute)
        return self.read / rates.read + self.written / rates.write + computing


def forward_operations(shape: ModelShape, windows: int, seqlen: int) -> float:
    """Floating-point operations of the blocks' forward pass; attention is causal."""
    tokens = windows * seqlen
    blocks = map(shape.block, range(shape.num_hidden_layers))
    width = sum(block.num_attention_heads * block.head_dim for block in blocks)
    return float(2 * shape.token_weights * tokens + 2 * tokens * seqlen * width)


def head_operations(shape: ModelShape, windows: int, seqlen: int) -> float:
    """Floating-point operations of the logits of as many tokens."""
    return 2.0 * windows * seqlen * shape.vocab_size * shape.hidden_size


def measure_rates(loop: BlockLoop, seqlen: int, folder: Path) -> Rates:
    """Measure this machine: reading the model, writing below ``folder``, a block's products."""
    tokens = micro_batch_of(seqlen, loop.micro_batch) * seqlen
    wide, quick = _other_dtypes(loop.dtype, loop.device)
    return Rates(
        read=read_rate(loop.checkpoint),
        write=write_rate(folder),
        compute=compute_rate(loop, tokens),
        wide=compute_rate(loop, tokens, dtype=wide) if wide else None,
        quick=compute_rate(loop, tokens, dtype=quick) if quick else None,
    )


def _other_dtypes(
    dtype: torch.dtype, device: torch.device
) -> tuple[torch.dtype | None, torch.dtype | None]:
    """What is multiplied in no narrower dtype, and in the quickest, where it is not ``dtype``."""
    wide = torch.float32 if dtype.itemsize < torch.float32.itemsize else None
    able = dtype == torch.float32 and device.type == "cpu" and multiplies_bfloat16()
    return wide, torch.bfloat16 if able else None


def usual_rates(shape: ModelShape, dtype: torch.dtype) -> Rates:
    """What this machine computes at one product of the model, and a usual disk: for an estimate."""
    compute = product_rate(shape, dtype, CPU)
    others = _other_dtypes(dtype, CPU)
    wide, quick = (product_rate(shape, each, CPU) if each else None for each in others)
    return Rates(USUAL_DISK, USUAL_DISK, compute, wide, quick, activation_rate(shape))


def activation_rate(shape: ModelShape) -> float:
    """Numbers a second that one thread's processor time puts through an activation and its gate."""
    gates, values = torch.ones(2, QUICK_TOKENS, shape.intermediate_size)

    def activate() -> None:
        torch.nn.functional.silu(gates).mul_(values)

    activate()
    return values.numel() / _best(activate, clock=processor_time)


def product_rate(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of one product of the model's own sizes: hidden size by FFN width.

    On a CPU by the time of its processors, so that others' work beside it does not count.
    """
    sizes = shape.hidden_size, shape.intermediate_size
    clock = time.perf_counter if device.type == "cuda" else processor_time
    seconds = _product_seconds(dtype, device, QUICK_TOKENS, *sizes, clock=clock)
    return 2.0 * QUICK_TOKENS * sizes[0] * sizes[1] / seconds


def processor_time() -> float:
    """Seconds that each of torch's threads has computed: those of the clock, were they alone."""
    return time.process_time() / torch.get_num_threads()


def read_rate(checkpoint: Checkpoint) -> float:
    """Bytes a second from the model's largest shard: from the disk, whatever is in the page cache.

    Where it is local it is read around that cache; where the file system has no such reading its
    pages are dropped before.
    """
    file = max(checkpoint.files.values(), key=lambda each: each.size)
    amount = min(SAMPLE_BYTES, file.size)
    buffer = memoryview(bytearray(READ_BYTES))
    local = hasattr(checkpoint.folder, "path")
    if local:  # opened anew: the model's own reading stays as it is
        file = LocalFile(checkpoint.directory / file.name)
        file.avoid_cache()

    def read() -> None:
        for start in range(0, amount, READ_BYTES):
            file.read_into(buffer[: amount - start], start)

    def drop() -> None:
        if local:
            forget_cached(checkpoint.directory / file.name)

    return amount / _best(read, drop)


def write_rate(folder: Path) -> float:
    """Bytes a second into a new file, until they are on the disk."""
    path = folder / f".rate-{os.getpid()}.partial"
    piece = memoryview(os.urandom(READ_BYTES))

    def write() -> None:
        with SyncedFile(path) as file:
            for _ in range(SAMPLE_BYTES // READ_BYTES):
                file.write(piece)

    try:
        return SAMPLE_BYTES / _best(write, lambda: path.unlink(missing_ok=True))
    finally:
        path.unlink(missing_ok=True)


def compute_rate(
    loop: BlockLoop,
    tokens: int,
    clock: Clock = time.perf_counter,
    dtype: torch.dtype | None = None,
) -> float:
    """Operations a second of the widest block's projections for this many tokens.

    In the dtype that windows are run in, or another.
    """
    shape, dtype = loop.checkpoint.shape, dtype or loop.dtype
    attention = shape.num_attention_heads * shape.head_dim
    kv = shape.num_key_value_heads * shape.head_dim
    sizes = [
        (shape.hidden_size, attention), (shape.hidden_size, kv), (attention, shape.hidden_size),
        (shape.hidden_size, shape.intermediate_size), (shape.intermediate_size, shape.hidden_size),
    ]  # fmt: skip
    counts = [1, 2, 1, shape.ffn_matrices - 1, 1]
    seconds, operations = 0.0, 0.0
    for (inputs, outputs), count in zip(sizes, counts, strict=True):
        taken = _product_seconds(dtype, loop.device, tokens, inputs, outputs, clock=clock)
        seconds += count * taken
        operations += count * 2.0 * tokens * inputs * outputs
    return operations / seconds


@torch.no_grad()
def _product_seconds(
    dtype: torch.dtype, device: torch.device, tokens: int, inputs: int, outputs: int,
    clock: Clock = time.perf_counter,
) -> float:  # fmt: skip
    values = torch.ones(tokens, inputs, dtype=dtype, device=device)
    weight = torch.ones(outputs, inputs, dtype=dtype, device=device)

    def product() -> None:
        torch.nn.functional.linear(values, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with quick_float32():
        product()
        return _best(product, clock=clock)


def _best(
    work: Callable[[], object],
    before: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        before()
        start = clock()
        work()
        best = min(best, clock() - start)
    return best
