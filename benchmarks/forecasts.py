"""What ``bipline prune`` tells before it starts, beside what it then took: time and memory.

    .venv/bin/python -m benchmarks.forecasts [--only 'smollm2-135m quick bfloat16']
    .venv/bin/python -m benchmarks.forecasts --tables     # what was measured, into RESULTS.md

What a run took is processor time of one thread, of the whole process, and what is told follows from
rates that are taken in processor time just before it: neither waits for others' work, so the two
can be compared on a busy machine, where wall seconds say nothing. What is told is computed anew for
the table, by the rates of the run. Beside it is what stage compensate took, by its share of the
run's time, and its floor (bipline/model/floor.py). A run is a line of
``benchmarks/forecasts.jsonl`` as soon as it is there; a line goes where it is to be measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import add_line, read_lines, told_of_machine
from benchmarks.processes import children_seconds, run
from benchmarks.tables import Table, write_between
from bipline.compression.auto import settled_settings
from bipline.model.devices import CPU, torch_dtype
from bipline.model.floor import USUAL_DISK, Rates, activation_rate, product_rate
from bipline.model.opening import open_checkpoint
from bipline.settings.line import LineSettings
from bipline.stages.forecast import forecast

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "forecasts.jsonl"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
OUT = ROOT / "build" / "benchmarks" / "forecasts"
RATIO, SAMPLES, SEQLEN = 0.2, 128, 128
DTYPES, ACTIVATED = ("float32", "bfloat16"), "activated"
SCRIPT = "import json, sys, bipline; bipline.prune(**json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Run:
    """One ``bipline prune`` by ``auto``, uniform."""

    model: str
    effort: str
    dtype: str

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.model} {self.effort} {self.dtype}"


@dataclass(frozen=True)
class Place:
    """Where a model lies, and the text that it is calibrated on."""

    model: Path
    text: Path


def places(data: Path) -> dict[str, Place]:
    """The models, by name; SmolLM2 is there where ``benchmarks.real`` has fetched it."""
    assets = ROOT / "assets"
    return {
        "reference-llm": Place(assets / "reference-llm", assets / "texts" / "calibration.txt"),
        "smollm2-135m": Place(
            ROOT / "build" / "models" / "smollm2-135m", data / "text" / "wikitext2.valid.tokens.txt"
        ),
    }


def runs() -> list[Run]:
    """All of them, the quick ones first."""
    models, efforts = ("reference-llm", "smollm2-135m"), ("quick", "balanced", "best")
    return [Run(model, effort, d) for effort in efforts for model in models for d in DTYPES[::-1]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not known yet, and write the table of all that is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="RUN")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = places(given.data)
    known = {line["run"] for line in lines()}
    for each in [] if given.tables else runs():
        if each.name not in known and (not given.only or each.name in given.only):
            print(each.name, flush=True)
            measure(each, found[each.model])
    write_between(RESULTS, "forecasts", table(list(lines()), found))


def measure(asked: Run, place: Place) -> None:
    """One run in a process of its own, as a line."""
    shape, out = open_checkpoint(place.model).shape, OUT / asked.name.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    OUT.mkdir(parents=True, exist_ok=True)
    told, facts = out.with_suffix(".json"), told_of_machine(OUT)
    rates = {name: product_rate(shape, torch_dtype(name), CPU) for name in DTYPES}
    rates[ACTIVATED] = activation_rate(shape)
    asking = {
        "model": str(place.model), "out": str(out), "calibration": str(place.text),
        "json_file": str(told), "ratio": RATIO, "samples": SAMPLES, "seqlen": SEQLEN,
        "effort": asked.effort, "dtype": asked.dtype, "device": "cpu", "state": str(OUT / "state"),
        "floor": True,
    }  # fmt: skip
    before, start = children_seconds(), time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"
    run([sys.executable, "-c", SCRIPT, json.dumps(asking)])
    result = json.loads(told.read_text("utf-8"))
    value = {
        "run": asked.name,
        **asdict(asked),
        "rates": rates,
        "processor_seconds": round(children_seconds() - before, 1),
        "wall_seconds": round(time.perf_counter() - start, 1),
        "peak_anonymous_bytes": result["peak_anonymous_bytes"],
        "compensate_seconds": result["seconds"]["stage"]["compensate"],
        "compensate_floor_seconds": result["floor_seconds_by_stage"].get("compensate"),
        "machine": facts,
    }
    add_line(LINES, value)


def lines() -> Iterator[dict[str, Any]]:
    """What was measured, a run each."""
    return read_lines(LINES)


def table(found: Sequence[dict[str, Any]], where: dict[str, Place]) -> str:
    """The table in Markdown, and what it was measured on."""
    columns = (
        "run", "told, s", "processor s", "told / took", "told, GB", "peak, GB", "told / peak",
        "compensate, s", "its floor, s", "of its floor",
    )  # fmt: skip
    rows = [_row(line, where[line["model"]]) for line in found if line["model"] in where]
    known = {line["run"] for line in found}
    missing = [each.name for each in runs() if each.name not in known]
    parts = [Table("", columns, tuple(rows)).markdown()]
    if missing:
        parts.append(f"Not run: {'; '.join(missing)}.")
    told = sorted({line["machine"]["processor"] for line in found})
    loads = [line["machine"]["load_before"] for line in found] or [0.0]
    parts.append(
        f"One thread of {', '.join(told)}, load before a run {min(loads)} to {max(loads)} on "
        f"{os.cpu_count()} cores."
    )
    return "\n\n".join(parts)


def _row(line: dict[str, Any], place: Place) -> tuple[str, ...]:
    settings = LineSettings.model_validate(
        {
            "model": str(place.model), "texts": {"calibration": str(place.text)},
            "effort": line["effort"], "compute": {"dtype": line["dtype"], "device": "cpu"},
            "allocate": {"ratio": RATIO}, "calibrate": {"samples": SAMPLES, "seqlen": SEQLEN},
        }
    )  # fmt: skip
    settings, _ = settled_settings(settings)
    rates = line["rates"]
    computed = rates[line["dtype"]], rates["float32"], max(rates[each] for each in DTYPES)
    measured = Rates(USUAL_DISK, USUAL_DISK, *computed, rates.get(ACTIVATED))
    told = forecast(settings, open_checkpoint(place.model), measured)
    took, peak = line["processor_seconds"], line["peak_anonymous_bytes"]
    floor = line["compensate_floor_seconds"]
    compensated = took * line["compensate_seconds"] / line["wall_seconds"]
    return (
        line["run"], f"{told.seconds:.0f}", f"{took:.0f}", f"{told.seconds / took:.2f}",
        f"{told.memory / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{told.memory / peak:.2f}",
        f"{compensated:.0f}", *((f"{floor:.0f}", f"{compensated / floor:.2f}") if floor else "--"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
