"""What scoring adds to a plain forward pass over the same blocks, windows and dtype.

Both run in this process, alternating, with hidden states in memory and the model's digests known,
so that neither hashes what it reads. Two parts of the difference are also measured alone: sums,
which every token adds to (``observe``), and scores, which a block costs once (``score``).

    python -m benchmarks.scoring_overhead MODEL --samples 64 --json FILE
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.running import CALIBRATION, SEQLEN
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria import load_criterion
from bipline.compression.criteria.interface import Block, Options, Tokens
from bipline.compression.score import score_model
from bipline.compression.windows import Windows
from bipline.model.block_loop import Activations
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import import_libraries
from bipline.model.opening import open_checkpoint

CRITERIA = ("llm-bip", "llm-bip-glu")
COMPUTING = Computing(torch.bfloat16)
PLAIN = "forward pass"
REPEATS = 3


def main() -> None:
    """Measure, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description="Scoring beside a plain forward pass.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    import_libraries()
    checkpoint = open_checkpoint(given.model)
    drawn = calibrate(checkpoint.folder, [(CALIBRATION, 1.0)], given.samples, SEQLEN, 0)
    windows = Windows(drawn.token_ids, drawn.digest, COMPUTING)
    found = {
        "blocks": checkpoint.shape.num_hidden_layers,
        "tokens": windows.token_ids.numel(),
        "seconds": _passes(checkpoint, windows),
        "parts": {name: _parts(checkpoint, windows, name) for name in CRITERIA},
    }
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _passes(checkpoint: Checkpoint, windows: Windows) -> dict[str, list[float]]:
    """Seconds of whole passes: a warm-up of each, then all of them in turn, three times."""
    passes: dict[str, Callable[[], object]] = {
        PLAIN: lambda: _forward(checkpoint, windows.token_ids)
    }
    for name in CRITERIA:
        passes[name] = _scoring(checkpoint, windows, name)
    for once in passes.values():
        once()
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(REPEATS):
        for name, once in passes.items():
            seconds[name].append(_seconds(once))
    return seconds


def _forward(checkpoint: Checkpoint, token_ids: torch.Tensor) -> None:
    """All blocks on all windows, as scoring runs them, and nothing observed."""
    loop = COMPUTING.loop(checkpoint)
    states = loop.states(token_ids)
    loop.embed_into(states, token_ids)
    for block in loop.blocks():
        block.advance(states)


def _scoring(checkpoint: Checkpoint, windows: Windows, criterion: str) -> Callable[[], object]:
    return lambda: score_model(checkpoint, windows, criterion, Options())


def _parts(checkpoint: Checkpoint, windows: Windows, criterion: str) -> dict[str, float]:
    """Seconds of the two functions of a criterion alone, on the first block and chunk."""
    chosen = load_criterion(criterion)
    loop = COMPUTING.loop(checkpoint)
    resident = loop.block(0)
    block = Block(0, checkpoint.shape, resident.weights)
    seen = _observed(resident, loop.embed(windows.token_ids[:16]))
    tokens = Tokens(seen, SEQLEN)
    sums = chosen.observe(block, tokens, Options())
    count = float(sums["tokens"])
    observing = _best(lambda: chosen.observe(block, tokens, Options()))
    return {
        "observe_seconds_per_token": observing / count,
        "observe_seconds_per_block": observing / count * windows.token_ids.numel(),
        "score_seconds_per_block": _best(lambda: chosen.score(sums, block, Options())),
    }


def _observed(resident: Any, hidden: torch.Tensor) -> Activations:
    """What a block shows of its first micro-batch."""
    parts: list[Activations] = []
    resident.run(hidden, parts.append)
    return parts[0]


@torch.no_grad()
def _best(work: Callable[[], object]) -> float:
    work()
    return min(_seconds(work) for _ in range(REPEATS))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
