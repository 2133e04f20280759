"""The tables ``bipline compare`` and ``bipline sweep`` end with: a line a combination."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bipline.comparison.spread import Repeated, Spread, ranked
from bipline.values.comparison import Comparison, SweepSummary

DASH = "\N{EN DASH}"


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
        f"{best.minimised} {best.value:,.6g}"
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
        console.print(_table(comparison, model, [each for each in found if each.measured]))
        lines = [*_shared(found), *_refused(comparison, found)]
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()


def _shared(found: list[Repeated]) -> list[str]:
    shared = any(row.cost.sums_from for each in found for row in each.rows)
    return [
        "* scored from the sums of another criterion's pass, whose seconds count there"
    ] * shared


def _refused(comparison: Comparison, found: list[Repeated]) -> list[str]:
    """A line a method and reason, with the ratios it is the reason for."""
    ratios: dict[tuple[str, str], list[str]] = {}
    for each in found:
        for reason in each.refusals:
            held = ratios.setdefault((_name(comparison, each, each.combination.method), reason), [])
            held.append(f"{each.combination.ratio:g}")
    return [
        f"refused: {name}, ratio {', '.join(held)}: {reason}"
        for (name, reason), held in ratios.items()
    ]


def _table(comparison: Comparison, model: str, found: list[Repeated]) -> Table:
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=Text(model), title_justify="left"
    )
    for name in ("method", "compensation", "ratio"):
        table.add_column(name, justify="right" if name == "ratio" else "left")
    change = f"NLL, {comparison.texts[0]}"
    for name in ("parameters", *comparison.texts, change, "seconds", "MB"):
        table.add_column(Text(name), justify="right")
    dense = comparison.models[model].record
    figures = [f"{dense.perplexity[text].value:,.2f}" for text in comparison.texts]
    table.add_row("dense", "", "", f"{dense.parameters:,}", *figures, "", "", "")
    for each in found:
        table.add_row(*map(Text, _cells(comparison, each)))
    return table


def _cells(comparison: Comparison, each: Repeated) -> list[str]:
    texts = comparison.texts
    perplexities = [
        each.over(lambda _, measured, text=text: measured.perplexity[text].value)  # type: ignore[misc]
        for text in texts
    ]
    change = each.over(lambda _, measured: measured.change[texts[0]].nll)
    parameters = each.over(lambda _, measured: measured.parameters.after)
    seconds = each.over(lambda row, _: row.cost.total_seconds)
    memory = each.over(lambda row, _: row.cost.peak_anonymous_bytes / 1e6)
    shared = "*" if any(row.cost.sums_from for row in each.rows) else ""
    return [
        _name(comparison, each, each.combination.selection),
        each.compensation,
        f"{each.combination.ratio:g}",
        f"{parameters.mean:,.0f}" if parameters else "",
        *map(_spread, perplexities),
        f"{change.mean:+.3f}" if change else "",
        f"{seconds.mean:.1f}{shared}" if seconds else "",
        f"{memory.most:,.0f}" if memory else "",
    ]


def _name(comparison: Comparison, each: Repeated, name: str) -> str:
    several = len(comparison.calibrations) > 1
    return f"{name}, on {each.combination.calibration}" if several else name


def _spread(spread: Spread | None) -> str:
    """The mean, and beside it how far the seeds lie apart."""
    if spread is None:
        return ""
    if spread.deviation is None:
        return f"{spread.mean:,.2f}"
    apart = f"{spread.least:,.2f}{DASH}{spread.most:,.2f}"
    return f"{spread.mean:,.2f} ±{spread.deviation:,.2f} ({apart})"


def _print_lines(console: Console, lines: dict[str, str]) -> None:
    for label, value in lines.items():
        console.print(f"{label:<10}{value}", highlight=False, soft_wrap=True, markup=False)
