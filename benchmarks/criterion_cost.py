"""What one criterion costs on one model: seconds, peak private memory, and operations.

A process of its own, so that peaks do not mix; ``benchmarks.fidelity`` runs it for every
criterion. Operations are counted by PyTorch as they run and told in units of one forward pass of
the blocks over the same windows. The scores are saved for whoever compares them.

    python -m benchmarks.criterion_cost MODEL CRITERION TEXT --scores FILE --json FILE
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.operations import OperationCounter
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria import needs_of, options_of
from bipline.compression.score import score_model
from bipline.compression.statistics import flattened
from bipline.compression.windows import Windows
from bipline.model.loading import import_libraries
from bipline.model.memory import watching_memory
from bipline.model.opening import open_checkpoint
from bipline.settings.base import key_values

# Operations per window do not depend on how many there are; saap wants two chunks.
COUNTED_WINDOWS = 32


def main() -> None:
    """Score once for the clock, and fewer windows for the counter; a search runs once, for both."""
    given = _arguments()
    import_libraries()
    checkpoint = open_checkpoint(given.model)
    drawn = calibrate(checkpoint.folder, [(given.text, 1.0)], given.samples, given.seqlen, 0)
    options = options_of(given.criterion, 0, key_values(given.option or ()))
    computing = Computing().within(None, checkpoint, drawn.token_ids)
    counter = OperationCounter()

    def score(windows: int | None = None) -> Any:
        few = Windows(drawn.token_ids[:windows], drawn.digest, computing)
        return score_model(checkpoint, few, given.criterion, options)[1]

    needs = needs_of(given.criterion)
    searches = not needs.sums
    with watching_memory() as peak:
        start = time.perf_counter()
        if searches:
            with counter:
                scores = score()
        else:
            scores = score()
        seconds = time.perf_counter() - start
    counted = len(drawn.token_ids) if searches else COUNTED_WINDOWS
    if not searches:
        with counter:
            score(counted)
    save_file(flattened([block.tensors() for block in scores.blocks]), given.scores)
    value = {
        "seconds": round(seconds, 3),
        "peak_anonymous_bytes": peak.anonymous,
        "forward_passes": counter.total
        / _forward_flops(computing, checkpoint, drawn.token_ids[:counted]),
        "needs": needs.name,
        "options": options.to_json_value(),
    }
    given.json.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _forward_flops(computing: Computing, checkpoint: Any, token_ids: torch.Tensor) -> int:
    loop = computing.loop(checkpoint)
    with torch.no_grad(), OperationCounter() as counter:
        hidden = loop.embed(token_ids)
        for block in loop.blocks():
            hidden = block.run(hidden)
    return counter.total


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what one criterion costs on one model")
    parser.add_argument("model", type=Path)
    parser.add_argument("criterion")
    parser.add_argument("text", type=Path)
    parser.add_argument("--option", action="append", help="KEY=VALUE; may be repeated")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=128)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
