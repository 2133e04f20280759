"""Processor seconds of compensating the first blocks of a real model, block by block.

    python -m benchmarks.compensated_blocks MODEL TEXT --groups 3 --channels 1120 --blocks 2

A whole model of 135 M parameters takes the better part of an hour; a few blocks tell what a change
of ``obs`` does to its cost. Every block keeps its first groups and channels, which are then chosen
again.
Options of ``obs`` are set by ``--option``. Before and after are measured by running this in a
checkout of each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from bipline.compression import calibrate
from bipline.compression.compensation.drawn_windows import divided_with_drawn
from bipline.compression.compensation.engine import compensate
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.computing import Computing
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import import_libraries
from bipline.model.opening import open_checkpoint
from bipline.model.products import quick_float32
from bipline.storage.folder import LocalFolder
from bipline.values.plan import BlockPlan, Budget, PruningPlan

SEQLEN = 128


@quick_float32()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compensate and print a line a block."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--groups", type=int, required=True)
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args(arguments)
    import_libraries()
    checkpoint, options, computing = (
        open_checkpoint(asked.model),
        CompensationOptions.model_validate(dict(each.split("=", 1) for each in asked.option)),
        Computing(),
    )
    folder = LocalFolder(asked.model)
    windows = calibrate.calibrate(folder, [(asked.text, 1.0)], asked.samples, SEQLEN, 0).token_ids
    before = time.process_time()
    divided = divided_with_drawn(computing.loop(checkpoint), windows, "obs", options)
    print(f"drawn windows: {time.process_time() - before:.1f} s", flush=True)
    plan, before = _plan(checkpoint, asked.groups, asked.channels), time.process_time()
    for done in compensate(checkpoint, plan, divided, computing, "obs", options):
        record, now = done.record, time.process_time()
        errors = f"error {record.error_without:.5f} to {record.error:.5f}"
        print(f"block {record.index}: {now - before:.1f} s, {errors}", flush=True)
        if record.index + 1 == asked.blocks:
            return
        before = now


def _plan(checkpoint: Checkpoint, groups: int, channels: int) -> PruningPlan:
    block = BlockPlan(attention_groups=tuple(range(groups)), ffn_channels=tuple(range(channels)))
    return PruningPlan(
        tensor_digest=checkpoint.tensor_digest,
        criterion="none",
        allocation="by hand",
        budget=Budget(asked=0, of="blocks", reached_blocks=0, reached_total=0),
        ffn_multiple=1,
        blocks=(block,) * checkpoint.shape.num_hidden_layers,
    )


if __name__ == "__main__":
    main()
