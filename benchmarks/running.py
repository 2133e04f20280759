"""Running what is measured, each time as a process of its own: see :mod:`.processes`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import run
from benchmarks.session import Session
from bipline.storage.folder import forget_cached

STAGES = ("calibrate", "score", "allocate", "prune")
SEQLEN = 128
CALIBRATION = Path("assets/texts/calibration.txt")


@dataclass(frozen=True)
class Pruned:
    """One ``bipline prune``: its command, its own JSON, and the seconds of the whole process."""

    command: str
    result: dict[str, Any]
    seconds: float
    printed: str

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by stage, in the order in which they ran."""
        seconds = self.result["seconds"]["stage"]
        return {name: seconds[name] for name in sorted(seconds, key=STAGES.index)}


def prune(
    session: Session,
    model: Path,
    out: Path,
    *options: str | Path,
    samples: int | None = None,
    data_limit: int | None = None,
) -> Pruned:
    """Run ``bipline prune`` from a dropped page cache; ``samples`` says to calibrate on a text."""
    json_file = out.with_name(f"{out.name}.json")
    arguments = [str(model), *map(str, options)]
    if samples is not None:
        windows = ["--samples", str(samples), "--seqlen", str(SEQLEN)]
        arguments += [*windows, "--calibration", str(CALIBRATION)]
    arguments += ["--out", str(out), "--json", str(json_file)]
    shown = " ".join(["bipline", "prune", *arguments])
    session.say(f"$ {shown}")
    state = ["--state", str(out.with_name("state"))]
    forget_model(model)
    finished = run([sys.executable, "-m", "bipline", "prune", *arguments, *state], data_limit)
    result = json.loads(json_file.read_text(encoding="utf-8"))
    return Pruned(shown, result, finished.seconds, finished.printed)


def run_module(
    session: Session, module: str, json_file: Path, *arguments: str | Path
) -> tuple[dict[str, Any], float]:
    """Run one of these modules that writes JSON; its JSON and the seconds of the process."""
    words = [module, *map(str, arguments), "--json", str(json_file)]
    session.say(f"$ python -m {' '.join(words)}")
    finished = run([sys.executable, "-m", *words])
    return json.loads(json_file.read_text(encoding="utf-8")), finished.seconds


def forget_model(model: Path) -> None:
    """Have the next reading of a model come from the disk."""
    os.sync()  # only clean pages can be dropped
    for path in model.glob("*.safetensors"):
        forget_cached(path)
