"""Does more calibration text over-fit? The error compensation leaves, from few windows to many.

    .venv/bin/python -m benchmarks.calibration_curve [--data ../shared/data]

The plan is the same for all (llm-bip-exact on 128 windows of seed 0, uniform, ratio 0.35);
compensation ``obs`` is fitted on 16 to 512 windows of 128 tokens of other seeds. Then the pruned
model runs on windows that are in none of them: how far its final stream is from the dense model's,
behind the norm (0 is equal, 2 unrelated), and the perplexity that it leaves there. Writes
benchmarks/calibration_curve.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.machine import machine
from bipline.compression.allocate import allocate
from bipline.compression.calibrate import calibrate
from bipline.compression.compensation.held_out import difference
from bipline.compression.compensation.realise import realise
from bipline.compression.computing import Computing
from bipline.compression.corrections import KIND, open_corrections
from bipline.compression.criteria import options_of
from bipline.compression.prune import prune
from bipline.compression.score import score_model
from bipline.compression.windows import Windows
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.opening import open_checkpoint
from bipline.model.products import quick_float32
from bipline.settings.line import AllocateSettings, CompensateSettings
from bipline.storage.directory import atomic_directory
from bipline.values.plan import PruningPlan

COUNTS = (16, 32, 64, 128, 256, 512)
SEQLEN, RATIO = 128, 0.35
TEXTS = {
    "reference-llm": ("novels.calibration.txt", "novel.hound.txt"),
    "stories260K": ("tinystories.train.txt", "tinystories.valid.txt"),
}
RESULT = Path(__file__).with_name("calibration_curve.json")


@dataclass(frozen=True)
class Point:
    """What a number of calibration windows leaves on windows that were not among them."""

    model: str
    seed: int
    windows: int
    error: float
    perplexity: float


@quick_float32()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every point, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", nargs="*", default=list(TEXTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--counts", type=int, nargs="*", default=list(COUNTS))
    asked = parser.parse_args(arguments)
    facts, points = machine(Path()), []
    for model in asked.models:
        curve = Curve(asked.data, model)
        print(f"{model}: dense perplexity {curve.dense:.3f}", flush=True)
        for seed in asked.seeds:
            for count in asked.counts:
                point = curve.point(seed, count)
                points.append(asdict(point))
                print(
                    f"  seed {seed}, {count:4} windows: error {point.error:.4f}, "
                    f"perplexity {point.perplexity:.3f}",
                    flush=True,
                )
    value = {"schema_version": 1, "machine": facts, "points": points}
    RESULT.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


class Curve:
    """One model, its plan, and the windows that everything is measured on."""

    def __init__(self, data: Path, model: str) -> None:
        self.name, self.checkpoint = model, open_checkpoint(data / "models" / model)
        fitted, measured = (data / "text" / name for name in TEXTS[model])
        self._text = fitted
        self._held = self._windows(measured, 0, 64).token_ids
        self._plan = self._planned(self._windows(fitted, 0, 128))
        self._hidden, self.dense = final_stream(self.checkpoint, self._held)

    def point(self, seed: int, count: int) -> Point:
        """Compensate on ``count`` windows of a seed and measure."""
        windows = self._windows(self._text, seed, count)
        settings = CompensateSettings(compensation="obs")
        with TemporaryDirectory() as name:
            folder = Path(name)
            with atomic_directory(folder / "corrections", KIND) as writer:
                realise(self.checkpoint, self._plan, windows, settings, writer, folder / "work")
            plan, corrections = open_corrections(folder / "corrections")
            prune(self.checkpoint, plan, folder / "pruned", corrections=corrections)
            hidden, perplexity = final_stream(open_checkpoint(folder / "pruned"), self._held)
        error = difference(hidden, self._hidden, 1e-6) / self._held.numel()
        return Point(self.name, seed, count, error, perplexity)

    def _windows(self, text: Path, seed: int, count: int) -> Windows:
        drawn = calibrate(self.checkpoint.folder, [(text, 1.0)], count, SEQLEN, seed)
        return Windows(drawn.token_ids, drawn.digest, Computing())

    def _planned(self, windows: Windows) -> PruningPlan:
        options = options_of("llm-bip-exact", 0)
        with TemporaryDirectory() as work:
            _, scores = score_model(self.checkpoint, windows, "llm-bip-exact", options, Path(work))
        return allocate(self.checkpoint, scores, AllocateSettings(ratio=RATIO), 0)


@torch.no_grad()
def final_stream(checkpoint: Checkpoint, token_ids: Tensor) -> tuple[Tensor, float]:
    """The stream behind the last block, ``[windows, seqlen, hidden_size]``, and the perplexity."""
    loop = BlockLoop(checkpoint, torch.float32)
    hidden = loop.embed(token_ids)
    for block in loop.blocks():
        hidden = block.run(hidden)
    logits = loop.logits(token_ids)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, token_ids[:, 1:].flatten())
    return hidden, float(loss.exp())


if __name__ == "__main__":
    main()
