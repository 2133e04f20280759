"""Quality side by side: perplexity that every method leaves, on common ground, no fine-tuning.

    .venv/bin/python -m benchmarks.quality [--data ../shared/data] [--jobs 2] [--brief]

Runs ``bipline compare`` on three trained models, in both layouts, and writes the project's standing
table into benchmarks/RESULTS.md, between two markers. Killed, it goes on where it was. In the
per-layer layout every criterion's best allocation is found first, on one text, and then measured on
all of them. ``--brief``: fewer methods, and per-layer the best published one alone on all texts.

auto is a comparison of its own, so that a change of it measures no other row again; cells that
are not measured again stay in the table as benchmarks/quality.json has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.quality_tables import AUTO, PEERS, Cell, merged, standing_table
from bipline.values.comparison import Comparison, Row

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
OUT = Path("build/benchmarks/quality")
BIAS = "bias:sequential=false"
# Each published criterion with its published compensation.
PUBLISHED = {
    "wanda-sp": "none",
    "flap": BIAS,
    "llm-pruner": "none",
    "llm-pruner:importance=element-mixed": "none",
    "magnitude": "none",
}
# LLM-BIP's faithful forms, then forms of ours.
FAITHFUL = ("llm-bip", "llm-bip-glu")
OURS = ("llm-bip-exact", "llm-bip-adjoint")
ALLOCATIONS = ("standardized", "log-increase", "error-aware")
BRIEFLY_LEFT_OUT = ("llm-pruner:importance=element-mixed", "magnitude")
BRIEF_ALLOCATIONS = ("standardized", "error-aware")
# Of one model; of the same cell, the later one counts.
COMPARISONS = (
    "uniform", "uniform-peers", "uniform-auto", "per-layer-search", "per-layer", "per-layer-auto",
)  # fmt: skip
RATIOS = ("0.2", "0.35", "0.5")


@dataclass(frozen=True)
class Subject:
    """A model, the text it is calibrated on, and those it is measured on; the first one chooses."""

    model: str
    calibration: str
    texts: dict[str, str]


NOVELS = "novels.calibration.txt"
PROSE = {"novel": "novel.treasure-island.txt", "wikitext2": "wikitext2.test.raw.txt"}
SUBJECTS = (
    Subject("reference-llm", NOVELS, PROSE),
    Subject("reference-mha", NOVELS, PROSE),
    Subject("stories260K", "tinystories.train.txt", {"tinystories": "tinystories.valid.txt"}),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for and write the tables of all that has been run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", choices=("uniform", "peers", "per-layer", "tables"))
    parser.add_argument("--models", nargs="*", default=[subject.model for subject in SUBJECTS])
    parser.add_argument("--ratios", nargs="*", default=list(RATIOS))
    parser.add_argument("--brief", action="store_true", help="fewer methods")
    asked = parser.parse_args(arguments)
    facts = machine(OUT.parent)
    for subject in (each for each in SUBJECTS if each.model in asked.models):
        bench = Bench(subject, asked.data, asked.jobs, tuple(asked.ratios), asked.brief)
        if asked.only in (None, "uniform"):
            bench.uniform()
        if asked.only in (None, "uniform", "peers"):
            bench.peers()
        if asked.only in (None, "per-layer"):
            bench.per_layer()
    write_results(facts)


@dataclass(frozen=True)
class Bench:
    """The comparisons of one model."""

    subject: Subject
    data: Path
    jobs: int
    ratios: tuple[str, ...]
    brief: bool

    def uniform(self) -> None:
        """Published methods, LLM-BIP's forms, compensated ones and auto; same widths everywhere."""
        methods = [
            f"{name}/uniform/{compensation}" for name, compensation in self._published.items()
        ]
        methods += [f"{name}/uniform/none" for name in FAITHFUL]
        if not self.brief:
            methods += [f"{name}/uniform/none" for name in (*OURS, "flap")]
            methods += [f"{name}/uniform/obs" for name in ("wanda-sp", "llm-bip-exact")]
        self._compare("uniform", methods, self.subject.texts)
        self._compare("uniform-auto", [AUTO], self.subject.texts)

    def peers(self) -> None:
        """OSSCAR and SlimGPT at the published rows' widths and at auto's."""
        ways = ("wanda-sp/uniform", "llm-bip-glu/compensated")
        methods = [f"{way}/{name}" for name in PEERS for way in ways]
        self._compare("uniform-peers", methods, self.subject.texts)

    def per_layer(self) -> None:
        """Every criterion with its best allocation, and auto; blocks that differ."""
        first = dict(list(self.subject.texts.items())[:1])
        compensated = self._published | dict.fromkeys(FAITHFUL, "none")
        searched = [
            f"{name}/{allocation}/{compensation}"
            for name, compensation in compensated.items()
            for allocation in self._allocations
        ]
        searched += [
            f"wanda-sp/{allocation}/{name}" for name in PEERS for allocation in self._allocations
        ]
        self._compare("per-layer-search", searched, first)
        [text] = first
        found = load(self._folder("per-layer-search"))
        grouped = by_ratio(found) if self.brief else by_criterion(found)
        methods = sorted({method_of(best_of(rows, text)) for rows in grouped})
        self._compare("per-layer", methods, self.subject.texts)
        self._compare("per-layer-auto", [AUTO], self.subject.texts)

    @property
    def _allocations(self) -> tuple[str, ...]:
        return BRIEF_ALLOCATIONS if self.brief else ALLOCATIONS

    @property
    def _published(self) -> dict[str, str]:
        left_out = BRIEFLY_LEFT_OUT if self.brief else ()
        return {name: PUBLISHED[name] for name in PUBLISHED if name not in left_out}

    def _compare(self, name: str, methods: Iterable[str], texts: dict[str, str]) -> None:
        """One ``bipline compare``; a text that is added measures rows again, and nothing else."""
        layout = layout_of(name)
        text = self.data / "text"
        arguments = [
            "compare", self.data / "models" / self.subject.model, "--out", self._folder(name),
            "--calibration", text / self.subject.calibration,
            *(f"--text={title}={text / file}" for title, file in texts.items()),
            *(f"--method={method}" for method in methods),
            "--layouts", layout, "--ratios", ",".join(self.ratios), "--jobs", self.jobs,
        ]  # fmt: skip
        command = [sys.executable, "-m", "bipline", *map(str, arguments)]
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603

    def _folder(self, name: str) -> Path:
        return OUT / f"{self.subject.model}-{name}"


def layout_of(name: str) -> str:
    """The layout of a comparison, by its name."""
    return "uniform" if name.startswith("uniform") else "per-layer"


def load(folder: Path) -> Comparison:
    """A comparison that was run."""
    value = json.loads((ROOT / folder / "comparison.json").read_text(encoding="utf-8"))
    value.pop("spread")  # of seeds; there is one here
    return Comparison.model_validate_json(json.dumps(value))


def by_criterion(comparison: Comparison) -> list[list[Row]]:
    """Measured rows of one criterion and compensation at one ratio; auto is none of them."""
    found: dict[tuple[str, str, float], list[Row]] = {}
    for row in comparison.rows:
        tried = row.combination
        if row.measured and tried.alias is None:
            key = tried.criterion.label, tried.compensation.label, tried.ratio
            found.setdefault(key, []).append(row)
    return list(found.values())


def by_ratio(comparison: Comparison) -> list[list[Row]]:
    """The same rows, all criteria together."""
    found: dict[float, list[Row]] = {}
    for rows in by_criterion(comparison):
        found.setdefault(rows[0].combination.ratio, []).extend(rows)
    return list(found.values())


def best_of(rows: list[Row], text: str) -> Row:
    """The row of the lowest perplexity on a text."""
    return min(rows, key=lambda row: row.measured.perplexity[text].value)  # type: ignore[union-attr]


def method_of(row: Row) -> str:
    """A row's method as ``--method`` takes it."""
    tried = row.combination
    return f"{tried.criterion.label}/{tried.allocation.label}/{tried.compensation.label}"


def write_results(facts: dict[str, object]) -> None:
    """Put the tables of all cells there are between the markers of RESULTS.md."""
    target = ROOT / "benchmarks" / "quality.json"
    found = [Cell(**value) for value in json.loads(target.read_text(encoding="utf-8"))["cells"]]
    for subject in SUBJECTS:
        for name in COMPARISONS:
            if (ROOT / OUT / f"{subject.model}-{name}" / "comparison.json").is_file():
                found += _cells(subject.model, name)
    cells = sorted(merged(found), key=_order)
    text = RESULTS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    published = {"/".join(method) for method in PUBLISHED.items()} | set(PEERS)
    table = standing_table(cells, published, facts)
    RESULTS.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    values = [vars(cell) for cell in cells]
    target.write_text(json.dumps({"schema_version": 1, "cells": values}, indent=1) + "\n")


def _order(cell: Cell) -> tuple[int, bool, float]:
    """Models as in SUBJECTS, uniform before per-layer, ratios ascending."""
    models = [subject.model for subject in SUBJECTS]
    return models.index(cell.model), cell.layout != "uniform", cell.ratio


def _cells(model: str, name: str) -> list[Cell]:
    """The measured rows of one comparison."""
    comparison = load(OUT / f"{model}-{name}")
    cells = [Cell.of(model, layout_of(name), row, comparison) for row in comparison.rows]
    return [cell for cell in cells if cell]


if __name__ == "__main__":
    main()
