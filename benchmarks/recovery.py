"""What a recovery wins back: each recipe on a pruned model, and what the tokens cost.

    python benchmarks/recovery.py MODEL TEXTS OUT [--ratio 0.5] [--only NAME ...]

MODEL is pruned by llm-bip-glu without compensation, and by auto. Recipes train on
``novels.calibration.txt`` and are judged on ``novel.hound.txt``; the perplexity that is told is on
``novel.treasure-island.txt``, which nothing else reads. What OUT holds already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bipline.base.progress import listening
from bipline.face.api import prune
from bipline.model.block_loop import BlockLoop
from bipline.model.memory import watching_memory
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.perplexity import measure_text, text_windows
from bipline.recovery.place import Place
from bipline.recovery.recover import Request, recover
from bipline.settings.recipes import RECIPES
from bipline.storage.directory import atomic_directory
from bipline.storage.documents import read_documents
from bipline.values.paired import paired_difference

TEXTS = {"text": "novels.calibration.txt", "judge": "novel.hound.txt"}
TOLD = "novel.treasure-island.txt"
SHORT, LONG = 300_000, 2_000_000
LONGER = ("glu", "dense")
# Small models take larger steps than the defaults, which are LLM-Pruner's for 7 B parameters.
ADAPTED = {"learning_rate": 2e-3, "rank": 32, "alpha": 64, "dropout": 0.0}
TAUGHT = {**ADAPTED, "teacher_weight": 0.7, "top_k": 64}
RECIPE_SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", **ADAPTED},
    "ba-lora": {"kind": "ba-lora", **ADAPTED, "learning_rate": 5e-4},
    "ba-lora, consistency 1": {
        "kind": "ba-lora", **ADAPTED, "learning_rate": 5e-4, "consistency": 1.0, "diversity": 0.0,
    },
    "distill": {"kind": "distill", **TAUGHT},
    "full": {"kind": "full", "learning_rate": 5e-4},
}  # fmt: skip


class _Told:
    """Notes on the screen."""

    def begin(self, description: str, total: int | None) -> None:
        """Nothing is shown."""

    def advance(self) -> None:
        """Nothing is shown."""

    def end(self) -> None:
        """Nothing is shown."""

    def heading(self, text: str) -> None:
        """A line."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """A line."""
        print(" ", text, flush=True)


@cache
def measured(model: Path, texts: Path) -> tuple[float, tuple[float, ...]]:
    """Perplexity on the text that is told, and nats per token of each window."""
    windows = text_windows(load_tokenizer(model), read_documents(texts / TOLD), 128, "none")
    found, losses = measure_text(BlockLoop(open_checkpoint(model)), windows, TOLD)
    return found.value, losses


def trained(
    model: Path, dense: Path, texts: Path, out: Path, settings: dict[str, Any], tokens: int
) -> dict[str, Any]:
    """One row: a recovery of ``model`` into ``out``, kept whatever the judge says."""
    told = out.with_suffix(".json")
    if told.is_file():
        return dict(json.loads(told.read_text("utf-8")))
    recipe = RECIPES[settings["kind"]].model_validate({**settings, "tokens": tokens})
    place = Place(out.with_suffix(".training"))
    text, judge = (texts / TEXTS[name] for name in ("text", "judge"))
    start, processor = time.perf_counter(), time.process_time()
    with watching_memory() as peak, atomic_directory(out, "model") as writer:
        dense_model = open_checkpoint(dense)
        record = recover(Request(model, text, judge, recipe, dense_model), place, writer)
    seconds, computed = time.perf_counter() - start, time.process_time() - processor
    before, after = measured(model, texts), measured(out, texts)
    row = {
        "recipe": record.recipe, "tokens": record.tokens, "seconds": round(seconds, 1),
        "processor_seconds": round(computed, 1),
        "peak_bytes": peak.anonymous, "accepted": record.accepted, "reason": record.reason,
        "before": before[0], "after": after[0],
        "difference": paired_difference(before[1], after[1]).model_dump(),
        "losses": [point.loss for point in record.curve],
    }  # fmt: skip
    told.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
    return row


def pruned(arguments: argparse.Namespace, start: str) -> Path:
    """The model pruned by llm-bip-glu without compensation, or by auto."""
    place: Path = arguments.out / start
    criterion = {"glu": "llm-bip-glu"}.get(start, start)
    options: dict[str, Any] = {"compensation": "none"} if start == "glu" else {}
    if not place.is_dir():
        prune(
            arguments.model, place, calibration=arguments.texts / TEXTS["text"],
            ratio=arguments.ratio, criterion=criterion, state=arguments.out / "state", **options,
        )  # fmt: skip
    return place


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every run by its name, in the order of what they are worth."""
    out, dense, texts = arguments.out, arguments.model, arguments.texts
    out.mkdir(parents=True, exist_ok=True)
    # What the same training does to the dense model: without it a gain may be the texts' alone.
    runs = {
        f"{start}-{name}": (start, each, SHORT)
        for start in ("glu", "auto", "dense")
        for name, each in RECIPE_SETTINGS.items()
    }
    runs |= {f"{start}-distill-long": (start, RECIPE_SETTINGS["distill"], LONG) for start in LONGER}
    for name, (start, settings, tokens) in runs.items():
        if arguments.only and name not in arguments.only:
            continue
        print(name, flush=True)
        model = dense if start == "dense" else pruned(arguments, start)
        file = out / name.replace(", ", "-").replace(" ", "-")
        yield name, trained(model, dense, texts, file, settings, tokens)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    for name in ("model", "texts", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--only", nargs="*")
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    with listening(_Told()):
        found = dict(rows(arguments))
        dense = measured(arguments.model, arguments.texts)[0]
    print(
        f"\ndense {dense:.2f}\n\n| run | tokens | before | after | won back | interval of the loss "
        "| s | processor s | peak GB | kept |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, row in found.items():
        lost = row["before"] - dense
        won = f"{(row['before'] - row['after']) / lost:.0%}" if lost else ""
        print(
            f"| {name} | {row['tokens']:,} | {row['before']:.2f} | {row['after']:.2f} | {won} | "
            f"{row['difference']['low']:.3f} to {row['difference']['high']:.3f} | "
            f"{row['seconds']:.0f} | {row['processor_seconds']:.0f} | "
            f"{row['peak_bytes'] / 1e9:.2f} | {'yes' if row['accepted'] else 'no'} |"
        )


if __name__ == "__main__":
    main()
