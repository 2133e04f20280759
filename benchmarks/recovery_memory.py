"""The memory of a recovery: a random model of 3 GB trained by ``lora``, merged and judged.

    python -m benchmarks.recovery_memory FOLDER [--blocks 28] [--steps 2]

``bipline recover`` in bfloat16 with checkpointing, one window of 512 tokens a step. Ends with exit
code 1 where it takes 8 GB or more. The model stays in FOLDER for the next run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import run
from benchmarks.session import model_bytes
from bipline.base.errors import Refused
from bipline.model.memory import watching_memory

LIMIT = 8_000_000_000
SIZES = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 32000,
}  # fmt: skip
TEXTS = Path("assets/texts")
SEQLEN = 512


def model_of(folder: Path, blocks: int) -> Path:
    """The random model, drawn by a process of its own, which leaves no peak here."""
    place = folder / f"narrow-{blocks}"
    sizes = {**SIZES, "num_hidden_layers": blocks}
    given = [f"{name}={number}" for name, number in sizes.items()]
    run([sys.executable, "-m", "benchmarks.shapes", str(place), "narrow-1b", *given])
    return place


def judge_of(folder: Path) -> Path:
    """The beginning of the judge's text: what is measured is memory, not the judge."""
    place = folder / "judge.txt"
    place.write_text((TEXTS / "recovery-judge.txt").read_text("utf-8")[:4000], "utf-8")
    return place


def measured(model: Path, folder: Path, steps: int) -> dict[str, Any]:
    """One recovery: peaks of this process, seconds, and what the record says."""
    from bipline.face.api import recover

    told, start = folder / "told.json", time.perf_counter()
    with watching_memory() as peak:
        try:
            recover(
                model, folder / f"recovered-{time.time_ns()}", text=TEXTS / "recovery.txt",
                judge=judge_of(folder), json_file=told, state=folder / "state", device="cpu",
                dtype="bfloat16", checkpointing=True, batch_size=1, seqlen=SEQLEN, steps=steps,
            )  # fmt: skip
        except (
            Refused
        ) as error:  # random weights need not gain: it is merged and judged all the same
            print(error)
    record = json.loads(told.read_text("utf-8"))
    return {
        "model_bytes": model_bytes(model),
        "peak_anonymous_bytes": peak.anonymous, "peak_resident_bytes": peak.resident,
        "seconds": round(time.perf_counter() - start, 1), "tokens": record["tokens"],
        "merge_difference": record["merge_difference"], "reason": record["reason"],
    }  # fmt: skip


def main() -> None:
    """Measure, print, and fail where it is too much."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=28)
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found = measured(model_of(given.folder, given.blocks), given.folder, given.steps)
    print(json.dumps(found, indent=1))
    if max(found["peak_anonymous_bytes"], found["peak_resident_bytes"]) >= LIMIT:
        raise SystemExit(f"took {LIMIT / 1e9:.0f} GB or more")


if __name__ == "__main__":
    main()
