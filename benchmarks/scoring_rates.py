"""Scoring in float32 and bfloat16 beside its floor, at a small hidden size: ratios inside one run.

    .venv/bin/python -m benchmarks.scoring_rates          # measures, and writes into RESULTS.md

One thread, processor time: others' work does not count. The rate of products is taken before and
after the work that it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.machine import ProcessorTime, described, machine
from benchmarks.shapes import random_checkpoint
from benchmarks.tables import Table, write_between
from bipline.compression.computing import Computing
from bipline.compression.criteria.interface import Options
from bipline.compression.score import score_model
from bipline.compression.windows import Windows
from bipline.model.block_loop import MICRO_BATCH_TOKENS, BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.floor import compute_rate, forward_operations, processor_time
from bipline.model.loading import import_libraries
from bipline.model.opening import open_checkpoint
from bipline.model.products import quick_float32

SHAPE, BLOCKS = "smollm2-135m", 4
WINDOWS, SEQLEN = 128, 128
CRITERION = "llm-bip-glu"
DTYPES = ("bfloat16", "float32")
REPEATS = 3
RESULTS = Path(__file__).parent / "RESULTS.md"


@quick_float32()
def main() -> None:
    """Measure, and put the table into RESULTS.md."""
    torch.set_num_threads(1)
    import_libraries()
    facts, busy = machine(RESULTS.parent), ProcessorTime()
    with TemporaryDirectory(prefix="bipline-") as folder:
        place = random_checkpoint(Path(folder) / "model", SHAPE, num_hidden_layers=BLOCKS)
        rows = [_row(open_checkpoint(place), name) for name in DTYPES]
    columns = ("dtype", "GFLOP/s", "floor, s", "forward pass, s", "of the floor", "scoring, s",
               "of the floor")  # fmt: skip
    facts |= busy.shares()
    amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    lines = [*described(facts), f"Tiles for bfloat16 (AMX): {'yes' if amx else 'no'}."]
    text = "\n\n".join([Table("", columns, tuple(rows)).markdown(), "\n".join(lines)])
    print(text)
    write_between(RESULTS, "scoring-rates", text)


def _row(checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
    computing = Computing(torch_dtype(name))
    drawing, vocabulary = torch.Generator().manual_seed(0), checkpoint.shape.vocab_size
    token_ids = torch.randint(0, vocabulary, (WINDOWS, SEQLEN), generator=drawing)
    windows, loop = Windows(token_ids, "drawn", computing), computing.loop(checkpoint)
    before = compute_rate(loop, MICRO_BATCH_TOKENS, processor_time)
    passing = _best(lambda: _forward(loop, token_ids))
    scoring = _best(lambda: score_model(checkpoint, windows, CRITERION, Options()))
    rate = max(before, compute_rate(loop, MICRO_BATCH_TOKENS, processor_time))
    floor = forward_operations(checkpoint.shape, WINDOWS, SEQLEN) / rate
    return (
        name, f"{rate / 1e9:.0f}", f"{floor:.2f}", f"{passing:.2f}", f"{passing / floor:.2f}",
        f"{scoring:.2f}", f"{scoring / floor:.2f}",
    )  # fmt: skip


def _forward(loop: BlockLoop, token_ids: torch.Tensor) -> None:
    """All blocks on all windows, as scoring runs them, and nothing observed."""
    states = loop.states(token_ids)
    loop.embed_into(states, token_ids)
    for block in loop.blocks():
        block.advance(states)


def _best(work: Callable[[], object]) -> float:
    """Processor seconds, the least of a few, after a first that does not count."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = processor_time()
        work()
        seconds.append(processor_time() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
