"""Prefill and decode of a pruned model beside the dense one, taking turns on this machine.

python -m benchmarks.speed_of_pruned [--ratio R] [--repeats N] [--blocks N] [--threads N]
    [--batch N] [--llama-cpp] [--folder FOLDER]

Hidden size 1024, 8 blocks, a vocabulary of 4,096, 512 tokens: what pruning makes smaller is then
nearly all of the work.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import bipline
from benchmarks.running import CALIBRATION
from benchmarks.shapes import random_checkpoint
from bipline.model.opening import open_checkpoint
from bipline.quality.speed import measure_speed
from bipline.settings.protocol import Protocol
from bipline.storage.directory import write_text
from bipline.values.speed import Speed

SHAPE = "narrow-1b"


def main() -> None:
    """Measure, print, and write ``FOLDER/speed-of-pruned.json``."""
    given = _parsed()
    torch.set_num_threads(given.threads)
    models = _models(given.folder, given.blocks, given.ratio)
    protocol = Protocol(
        speed=True, speed_prompt_tokens=512, speed_decoded_tokens=given.decoded,
        speed_repeats=given.repeats, speed_batch=given.batch,
    )  # fmt: skip
    if given.llama_cpp:
        speeds = _served(models, protocol, given.threads)
    else:
        opened = {name: open_checkpoint(place) for name, place in models.items()}
        speeds = measure_speed(opened, protocol, torch.device("cpu"))
    for line in _lines(speeds):
        print(line)
    told = {name: each.model_dump(mode="json") for name, each in speeds.items()}
    write_text(given.folder / "speed-of-pruned.json", json.dumps(told, indent=1) + "\n")


def _models(folder: Path, blocks: int, ratio: float) -> dict[str, Path]:
    dense = random_checkpoint(
        folder / f"dense-{blocks}", SHAPE, torch.float32, num_hidden_layers=blocks, vocab_size=4096
    )
    pruned = folder / f"pruned-{blocks}-{ratio:g}"
    if not pruned.is_dir():
        bipline.prune(
            dense, pruned, calibration=str(CALIBRATION), ratio=ratio, criterion="magnitude",
            samples=8, ffn_multiple=64,
        )  # fmt: skip
    return {"dense": dense, "pruned": pruned}


def _served(models: dict[str, Path], protocol: Protocol, threads: int) -> dict[str, Speed]:
    from bipline.stages.speed_served import measure_served

    files = {}
    for name, place in models.items():
        out = place.with_name(f"{place.name}-gguf")
        if not out.is_dir():
            bipline.export(place, out, format="gguf")
        files[name] = str(next(out.glob("*.gguf")))
    return measure_served(files, protocol, threads).models


def _lines(speeds: dict[str, Speed]) -> list[str]:
    lines = []
    for name in ("prefill", "decode"):
        for where in ("batch 1", "filled"):
            if where == "filled" and not speeds["dense"].filled:
                continue
            found: dict[str, Any] = {
                model: getattr(each if where == "batch 1" else each.filled, name)
                for model, each in speeds.items()
            }
            told = ", ".join(
                f"{model} {s.median:,.1f} [{s.lower:,.1f}, {s.upper:,.1f}]"
                for model, s in found.items()
            )
            factor = found["pruned"].factor_over(found["dense"])
            said = "no difference told"
            if factor:
                said = f"{factor.median:.2f} x [{factor.lower:.2f}, {factor.upper:.2f}]"
            lines.append(f"{name}, {where}: {told}: {said}")
    return lines


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of a pruned model beside the dense one.")
    add = parser.add_argument
    add("--ratio", type=float, default=0.5)
    add("--repeats", type=int, default=15)
    add("--batch", type=int, default=4, help="sequences of the filled batch; 1 for none")
    add("--decoded", type=int, default=16)
    add("--blocks", type=int, default=8)
    add("--threads", type=int, default=2)
    add("--llama-cpp", action="store_true", help="as llama.cpp serves both")
    add("--folder", type=Path, default=Path("build/benchmarks"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
