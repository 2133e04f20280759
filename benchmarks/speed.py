"""Speed and memory of bipline, measured on this machine: see benchmarks/README.md.

.venv/bin/python -m benchmarks.speed [--quick] [--only SECTION,...] from the checkout's root
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.baseline import baseline_section
from benchmarks.growth import growth_section
from benchmarks.limits import larger_than_memory_section
from benchmarks.machine import ProcessorTime, described, machine
from benchmarks.main_job import gpu_section, main_section, second_ratio_section
from benchmarks.overhead import overhead_section
from benchmarks.precision import precision_section
from benchmarks.processes import Failed
from benchmarks.running import CALIBRATION
from benchmarks.session import QUICK_SHAPE, Session, Settings, session
from benchmarks.shapes import SHAPES
from benchmarks.tables import Section
from bipline.base.errors import BiplineError
from bipline.storage.directory import write_text

SCHEMA_VERSION = 1
SECTIONS: dict[str, Callable[[Session], Section]] = {
    "main": main_section,
    "second-ratio": second_ratio_section,
    "scoring-overhead": overhead_section,
    "baseline": baseline_section,
    "growth": growth_section,
    "larger-than-memory": larger_than_memory_section,
    "precision": precision_section,
    "gpu": gpu_section,
}
# These compare with what ``main`` found, or go on from what it saved.
NEED_MAIN = {"second-ratio", "baseline"}
QUICK_WARNING = "--quick tries the benchmarks out: figures of models this small say nothing"
FOLDER = Path("build/benchmarks")
PLOT = Path("benchmarks/growth.png")


@dataclass
class Results:
    """All that was found so far. It is written after every section, so a failure loses nothing."""

    command: str
    settings: Settings
    facts: dict[str, Any]
    json_file: Path
    markdown_file: Path | None
    processor_time: ProcessorTime = field(default_factory=ProcessorTime)
    sections: dict[str, Section] = field(default_factory=dict)

    def add(self, name: str, section: Section) -> None:
        """Take in one section and write everything."""
        self.sections[name] = section
        self.facts.update(self.processor_time.shares())
        value = {
            "schema_version": SCHEMA_VERSION,
            "command": self.command,
            "machine": self.facts,
            "settings": asdict(self.settings),
            "sections": {name: section.values for name, section in self.sections.items()},
        }
        write_text(self.json_file, json.dumps(value, indent=1, default=str) + "\n")
        if self.markdown_file:
            write_text(self.markdown_file, self._markdown())

    def warnings(self) -> list[str]:
        """What must be known before any figure is read."""
        return [QUICK_WARNING] if self.settings.quick else []

    def _markdown(self) -> str:
        lines = [f"* {line}" for line in [*described(self.facts), *self.warnings()]]
        head = f"```sh\n{self.command}\n```\n\n" + "\n".join(lines)
        parts = [f"## {name}\n\n{section.markdown()}" for name, section in self.sections.items()]
        return "\n\n".join([head, *parts]) + "\n"


def main() -> None:
    """Run the sections that were asked for; exit code 1 when one of them fails."""
    given = _parsed()
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 120)
    try:
        _run(given, console)
    except (Failed, BiplineError) as failure:
        sys.exit(f"error: {failure}")


def _run(given: argparse.Namespace, console: Console) -> None:
    if not CALIBRATION.is_file():
        raise Failed(f"{CALIBRATION}: not here; run from the root of the checkout")
    settings = _settings(given)
    with session(settings, console) as running:
        results = Results(
            command=" ".join([".venv/bin/python -m benchmarks.speed", *sys.argv[1:]]),
            settings=settings,
            facts=machine(settings.folder),
            json_file=given.json or settings.folder / "speed.json",
            markdown_file=given.markdown,
        )
        for line in [*described(results.facts)[:-1], *results.warnings()]:
            console.print(line, highlight=False, markup=False)
        for name in given.only:
            start = time.perf_counter()
            section = SECTIONS[name](running)
            running.found[name] = section.values
            results.add(name, section)
            section.show(console)
            running.say(f"({name} took {time.perf_counter() - start:.0f} s)\n")
        console.print(described(results.facts)[-1], highlight=False, markup=False)
        console.print(f"written: {results.json_file}", highlight=False, markup=False)


def _settings(given: argparse.Namespace) -> Settings:
    """``--quick`` also keeps the picture out of the repository: it is no result."""
    folder = given.folder
    return Settings(
        quick=given.quick,
        shape=QUICK_SHAPE if given.quick else given.shape,
        blocks=given.blocks,
        overhead_blocks=given.overhead_blocks,
        folder=folder,
        plot=given.plot or (folder / PLOT.name if given.quick else PLOT),
    )


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the speed and memory of bipline.")
    add = parser.add_argument
    add("--quick", action="store_true", help=f"the shape {QUICK_SHAPE}, in two minutes")
    add("--shape", choices=sorted(SHAPES), default="llama-7b", help="of the main model")
    add("--blocks", type=int, help="fewer blocks than the shape has, to fit a disk")
    add("--overhead-blocks", type=int, default=2, help="blocks in scoring-overhead [default: 2]")
    add("--folder", type=Path, default=FOLDER, help=f"for models and outputs [default: {FOLDER}]")
    add("--json", type=Path, metavar="FILE", help="the results [default: FOLDER/speed.json]")
    add("--markdown", type=Path, metavar="FILE", help="also the tables, as Markdown")
    add("--plot", type=Path, metavar="FILE",
        help=f"the picture of growth [default: {PLOT}; with --quick in FOLDER]")  # fmt: skip
    add("--only", type=_section_names, metavar="SECTION,...", default=list(SECTIONS),
        help=f"some of: {', '.join(SECTIONS)}")  # fmt: skip
    return parser.parse_args()


def _section_names(text: str) -> list[str]:
    """The sections of a list, in their usual order, with ``main`` where another needs it."""
    names = set(text.split(","))
    if unknown := sorted(names - set(SECTIONS)):
        known = ", ".join(SECTIONS)
        raise argparse.ArgumentTypeError(f"unknown section {unknown[0]!r}; known: {known}")
    if names & NEED_MAIN:
        names.add("main")
    return [name for name in SECTIONS if name in names]


if __name__ == "__main__":
    main()
