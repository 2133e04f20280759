"""Tables of the benchmarks: one form for the terminal and for Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """Rows of text under columns; the first column is words, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """The table as Markdown."""
        alignment = [":---", *["---:"] * (len(self.columns) - 1)]
        lines = [" | ".join(cells) for cells in (self.columns, alignment, *self.rows)]
        return "\n".join(f"| {line} |" for line in lines)


@dataclass(frozen=True)
class Section:
    """What one section found: values for the JSON, tables and remarks for people."""

    values: dict[str, Any]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()

    def show(self, console: Console) -> None:
        """Print the tables and remarks."""
        for table in self.tables:
            console.print(f"\n[bold]{escape(table.title)}[/bold]", highlight=False)
            console.print(table.rich(), highlight=False)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)

    def markdown(self) -> str:
        """The tables and remarks as Markdown."""
        parts = [f"### {table.title}\n\n{table.markdown()}" for table in self.tables]
        return "\n\n".join([*parts, *self.notes])


def seconds_text(seconds: float) -> str:
    """Seconds with as many digits as are worth reading."""
    return f"{seconds:,.1f}" if seconds >= 10 else f"{seconds:.3f}"


def gigabytes_text(size: float) -> str:
    """Bytes as gigabytes."""
    return f"{size / 1e9:.2f} GB"


def percent_text(share: float) -> str:
    """A share as a percentage."""
    return f"{share:.1%}"


def write_between(page: Path, name: str, text: str) -> None:
    """Put a text between the markers of this name on a page. Raises ValueError without them."""
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    before, first, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise ValueError(f"{page}: has no markers {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
