"""Running what is measured, each time as a process of its own.

This process must stay small: Linux hands the peak resident memory of a process on to the programs
that it starts (``ru_maxrss`` outlives ``exec``), so a parent that had once held a gigabyte would
add it to every peak that is reported here. Whatever needs memory therefore runs elsewhere.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.storage.folder import forget_cached

if TYPE_CHECKING:
    from benchmarks.session import Session

STAGES = ("calibrate", "score", "allocate", "prune")
SEQLEN = 128
CALIBRATION = Path("assets/texts/calibration.txt")
LAST_LINES = 20


class Failed(Exception):
    """A process that was to be measured failed, or did not do what is measured."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well: the seconds from its start to its end, and what it printed."""

    seconds: float
    printed: str


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


def run(command: Sequence[str], data_limit: int | None = None) -> Finished:
    """Run a command to its end; ``data_limit`` is the most private memory it may map, in bytes.

    Raises Failed, with what it said, when it fails.
    """
    start = time.perf_counter()
    finished = subprocess.run(  # noqa: S603 - commands of this project alone
        command, capture_output=True, text=True, check=False, preexec_fn=_limiting(data_limit)
    )
    seconds = time.perf_counter() - start
    if finished.returncode:
        last = "\n".join(finished.stdout.splitlines()[-LAST_LINES:])
        said = finished.stderr.strip() or last or "it said nothing (killed for want of memory?)"
        raise Failed(f"{' '.join(command)}\nended with {finished.returncode}:\n{said}")
    return Finished(seconds, finished.stdout)


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


def _limiting(data_limit: int | None) -> Callable[[], None] | None:
    if data_limit is None:
        return None
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))
