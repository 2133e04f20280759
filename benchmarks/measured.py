"""Measured lines: figures that are kept as soon as they are there, one JSON object a line.

A run that was killed goes on behind them; a line goes where it is to be measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

FACTS = ("date", "processor", "torch", "load_before")


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The figures there are; none where there is no file."""
    if file.is_file():
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def add_line(file: Path, value: Mapping[str, Any]) -> None:
    """Add a figure to a file."""
    with file.open("a", encoding="utf-8") as held:
        held.write(json.dumps(value) + "\n")


def told_of_machine(folder: Path) -> dict[str, Any]:
    """What a figure tells of the machine, and of how busy it is; ``folder`` is on its disk."""
    found = machine(folder)
    return {name: found[name] for name in FACTS if name in found}
