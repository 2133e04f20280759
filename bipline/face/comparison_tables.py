"""The tables ``bipline compare`` and ``bipline sweep`` end with: a line a combination."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bipline.comparison.spread import STARRED, Repeated, named, ranked, table_lines
from bipline.values.comparison import Comparison, SweepSummary
from bipline.values.figures import kind_of, label_of


def print_comparison(console: Console, comparison: Comparison, out: Path, log: Path) -> None:
    """Every model's table, then where results and log lie."""
    print_tables(console, comparison)
    shown = {"results": out / "comparison.json", "rows": out / "comparison.csv"}
    shown |= {"report": out / "comparison.html", "log": log}
    _print_lines(console, {name: str(path) for name, path in shown.items()})


def print_sweep(console: Console, summary: SweepSummary, log: Path) -> None:
    """The table of a sweep, the best row, how stages came out, and where everything lies."""
    print_tables(console, summary.comparison)
    best = summary.best
    told = "nothing was selected" if best is None else (
        f"{best.rows[0].combination.method}, ratio {best.rows[0].combination.ratio:g}: "
        f"{label_of(best.minimised)} {kind_of(best.minimised).text(best.value)}"
    )  # fmt: skip
    known = [stage.status for stage in summary.stages]
    counted = ", ".join(f"{known.count(status)} {status}" for status in dict.fromkeys(known))
    _print_lines(
        console,
        {
            "best": told,
            "stages": f"{counted}; {summary.seconds:.1f} s",
            "report": summary.report,
            "run": f"{summary.run_name}, in MLflow {summary.mlflow_run_id}",
            "log": str(log),
        },
    )


def print_tables(console: Console, comparison: Comparison) -> None:
    """A table for every model: dense first, then by ratio and perplexity; refusals below."""
    for model in comparison.models:
        found = ranked(comparison, model)
        console.print()
        console.print(_table(comparison, model))
        starred = [STARRED] if any(each.shares_sums for each in found) else []
        for line in (*starred, *_refused(comparison, found)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()


def _refused(comparison: Comparison, found: list[Repeated]) -> list[str]:
    """A line a method and reason, with the ratios it is the reason for."""
    ratios: dict[tuple[str, str], list[str]] = {}
    for each in found:
        method = named(comparison, each, each.combination.method)
        for reason in each.refusals:
            ratios.setdefault((method, reason), []).append(f"{each.combination.ratio:g}")
    return [
        f"refused: {name}, ratio {', '.join(shares)}: {reason}"
        for (name, reason), shares in ratios.items()
    ]


def _table(comparison: Comparison, model: str) -> Table:
    names = [
        "parameters", *(f"perplexity.{text}" for text in comparison.texts),
        f"nll_increase.{comparison.texts[0]}", "seconds", "peak_bytes",
    ]  # fmt: skip
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=Text(model), title_justify="left"
    )
    for name in ("method", "compensation"):
        table.add_column(name)
    for name in ("ratio", *map(label_of, names)):
        table.add_column(Text(name), justify="right")
    for line in table_lines(comparison, model, names, ranged={"perplexity"}):
        table.add_row(*map(Text, line))
    return table


def _print_lines(console: Console, lines: dict[str, str]) -> None:
    for label, value in lines.items():
        console.print(f"{label:<10}{value}", highlight=False, soft_wrap=True, markup=False)
