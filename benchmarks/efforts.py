"""Every effort of ``auto`` beside OSSCAR on three small models: what share of its increase is left.

    .venv/bin/python -m benchmarks.efforts [--only 'reference-llm 0.5']
    .venv/bin/python -m benchmarks.efforts --tables     # what was measured, into RESULTS.md

Uniform, 128 windows of 128 tokens, 512 for best as it takes by default, float32; OSSCAR at the
widths that ``auto`` chooses, so at the same size, on 128 windows; on 512 it is a column beside,
and best tells its share of that too. Texts are those that nothing was calibrated on or chosen by.
The standard error of a share is that of :data:`DRAWS` draws of the text's windows, with
replacement, the same for all rows. A figure is a line of ``benchmarks/efforts.jsonl`` as soon as it
is there; a line goes where it is to be measured again. SmolLM2-135M has a table of its own
(``benchmarks.real``).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.measured import add_line, read_lines, told_of_machine
from benchmarks.real import timed
from benchmarks.real_rows import BEST, METHODS, windows_of
from benchmarks.tables import NOTHING, Table, write_between

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "efforts.jsonl"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
OUT = ROOT / "build" / "benchmarks" / "efforts"
PEER, DENSE = "osscar, auto's widths", "dense"
# The same peer on as much text as best has.
READ_MORE = f"{PEER}, {BEST} windows"
EFFORTS = ("auto quick", "auto balanced", "auto best")
COMPARED = (READ_MORE, *EFFORTS)
RATIOS = ("0.2", "0.5")
FIRST_BYTES, DRAWS = 240_000, 1000


@dataclass(frozen=True)
class Subject:
    """A model, the text it is calibrated on, and those it is measured on."""

    name: str
    calibration: str
    texts: Mapping[str, str]


PROSE = {"novel": "novel.treasure-island.txt", "wikitext2": "wikitext2.test.raw.txt"}
SUBJECTS = (
    Subject("reference-llm", "novels.calibration.txt", PROSE),
    Subject("reference-mha", "novels.calibration.txt", PROSE),
    Subject("stories260K", "tinystories.train.txt", {"tinystories": "tinystories.valid.txt"}),
)
Losses = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not known yet, and write the table of all that is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="'MODEL RATIO'")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    given = parser.parse_args(arguments)
    for subject in () if given.tables else SUBJECTS:
        bench = Bench(subject, given.data.absolute())
        bench.row("", DENSE)
        for ratio in RATIOS:
            if not given.only or f"{subject.name} {ratio}" in given.only:
                for name in (PEER, *COMPARED):
                    bench.row(ratio, name)
    write_between(RESULTS, "efforts", table(list(lines())))


@dataclass(frozen=True)
class Bench:
    """The rows of one model."""

    subject: Subject
    data: Path

    def row(self, ratio: str, name: str) -> None:
        """Prune and measure, unless a line tells of it already."""
        told = {"model": self.subject.name, "ratio": ratio, "row": name}
        if any(told.items() <= line.items() for line in lines()):
            return
        print(*told.values(), flush=True)
        OUT.mkdir(parents=True, exist_ok=True)
        dense, place = self.data / "models" / self.subject.name, OUT / "pruned"
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(place.with_suffix(".work"), ignore_errors=True)
        seconds = 0.0
        if name != DENSE:
            method = METHODS[PEER if name == READ_MORE else name]
            samples = BEST if name == READ_MORE else windows_of(name)
            _, seconds = timed(
                "prune", dense, *method, "--ratio", ratio, "--layout", "uniform",
                "--calibration", self.data / "text" / self.subject.calibration,
                "--samples", samples, "--seqlen", "128", "--out", place, "--state", OUT / "state",
            )  # fmt: skip
        losses = self._losses(dense if name == DENSE else place)
        found = {"processor_seconds": round(seconds, 1), "losses": losses}
        add_line(LINES, told | found | {"machine": told_of_machine(OUT)})

    def _losses(self, model: Path) -> Losses:
        """Of every window of a text its mean NLL, to six digits."""
        words: list[object] = []
        for name, file in self.subject.texts.items():
            part = OUT / f"{FIRST_BYTES}.{file}"
            part.write_bytes((self.data / "text" / file).read_bytes()[:FIRST_BYTES])
            words += ["--text", f"{name}={part}"]
        told = OUT / "measured.json"
        timed(
            "evaluate", model, *words, "--seqlen", "128", "--dtype", "float32", "--json", told,
            "--state", OUT / "state",
        )  # fmt: skip
        windows = json.loads(told.read_text(encoding="utf-8"))["items"]["windows"]
        return {name: [round(each, 6) for each in windows[name]] for name in windows}


def share(dense: Tensor, peer: Tensor, own: Tensor) -> float:
    """What is left of a peer's increase of perplexity, from the losses of windows."""
    before, other, after = (math.exp(float(each.mean())) for each in (dense, peer, own))
    return (after - before) / (other - before)


def share_error(dense: Tensor, peer: Tensor, own: Tensor) -> float:
    """The standard error of :func:`share` over draws of the windows, with replacement."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(dense), (DRAWS, len(dense)), generator=generator)
    return stdev(share(dense[each], peer[each], own[each]) for each in drawn)


def lines() -> Iterator[dict[str, Any]]:
    """The figures there are, one a line."""
    return read_lines(LINES)


def table(known: Sequence[dict[str, Any]]) -> str:
    """Perplexities, shares of OSSCAR's increase and seconds, a line a model, ratio and text."""
    found = {(line["model"], line["ratio"], line["row"]): line for line in known}
    rows = []
    for subject in SUBJECTS:
        for ratio in RATIOS:
            held = {name: found.get((subject.name, ratio, name)) for name in (PEER, *COMPARED)}
            held[DENSE] = found.get((subject.name, "", DENSE))
            rows += [
                (f"{subject.name}, {ratio}, {text}", *_cells(held, text))
                for text in (subject.texts if held[DENSE] and held[PEER] else ())
            ]
    columns = (
        "", DENSE, "osscar", f"osscar, {BEST} windows", *EFFORTS, "osscar s",
        *(f"{name[5:]} s" for name in EFFORTS),
    )  # fmt: skip
    return Table("", columns, tuple(rows)).markdown()


def _cells(held: Mapping[str, dict[str, Any] | None], text: str) -> list[str]:
    losses = {
        name: torch.tensor(line["losses"][text]).double() for name, line in held.items() if line
    }
    cells = [f"{math.exp(float(losses[name].mean())):.2f}" for name in (DENSE, PEER)]
    for name in COMPARED:
        if name not in losses:
            cells.append(NOTHING)
            continue
        compared = losses[DENSE], losses[PEER], losses[name]
        value = math.exp(float(losses[name].mean()))
        told = f"{share(*compared):.2f} ± {share_error(*compared):.2f}"
        if name == EFFORTS[-1] and READ_MORE in losses:
            told += f"; {share(losses[DENSE], losses[READ_MORE], losses[name]):.2f}"
        cells.append(f"{value:.2f} ({told})")
    seconds = [(held[name] or {}).get("processor_seconds") for name in (PEER, *EFFORTS)]
    return cells + [NOTHING if each is None else f"{each:.0f}" for each in seconds]


if __name__ == "__main__":
    main()
