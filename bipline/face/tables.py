"""The tables a command ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bipline.values.compensation import counts_text
from bipline.values.figures import byte_size, label_of, side_by_side
from bipline.values.record import EvaluationRecord
from bipline.values.summary import PruneSummary, RunSummary


def evaluation_table(records: dict[str, EvaluationRecord]) -> Table:
    """Models side by side: a column each, a row per figure."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in records:
        table.add_column(name, justify="right")
    for line in side_by_side(records):
        table.add_row(Text(label_of(line.name)), *line.texts.values())
    return table


def print_summary(console: Console, summary: RunSummary, log: Path) -> None:
    """The end of a compress run: figures, stages with seconds, and where everything lies."""
    console.print()
    console.print(evaluation_table(summary.records))
    console.print()
    console.print(_stage_table(summary))
    console.print()
    for label, value in _closing_lines(summary, log):
        console.print(f"{label:<12}{value}", highlight=False, soft_wrap=True, markup=False)


def print_pruned(console: Console, summary: PruneSummary, log: Path, verbose: bool = False) -> None:
    """The end of ``bipline prune``: sizes and ratio; ``verbose`` also seconds beside the floor."""
    ratio, parameters, seconds = summary.ratio, summary.parameters, summary.seconds
    lines = [
        f"{summary.out}: {parameters.before:,} -> {parameters.after:,} parameters; ratio asked "
        f"{ratio['asked']:g} of {ratio['of']}, reached {ratio['reached_blocks']:.4f} of the "
        f"blocks, {ratio['reached_total']:.4f} of all; {seconds.total:.1f} s, "
        f"peak memory {byte_size(summary.peak_anonymous_bytes)}",
        *_compensation_line(summary.compensation),
        *(_floor_lines(summary) if verbose else []),
        f"log: {log}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _compensation_line(done: dict[str, Any]) -> list[str]:
    if done["name"] == "none":
        return []
    return [
        f"compensation {done['name']}: matrices took {counts_text(done['matrices'])}; error of the "
        f"blocks on held-out windows {done['error_without']:.4f} -> {done['error']:.4f}"
    ]


def _floor_lines(summary: PruneSummary) -> list[str]:
    taken = summary.seconds.stage
    return [
        f"{stage}: {taken[stage]:.1f} s, floor {floor:.1f} s ({taken[stage] / floor:.2f} x)"
        for stage, floor in summary.floor_seconds_by_stage.items()
    ] or ["floor: not measured, as no stage took 5 s or an earlier run did a part"]


def _stage_table(summary: RunSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for stage in summary.stages:
        table.add_row(stage.name, f"{stage.seconds:.1f}", stage.status)
    return table


def _closing_lines(summary: RunSummary, log: Path) -> list[tuple[str, str]]:
    budget = summary.plan.budget
    lines = [
        (
            "ratio",
            f"asked {budget.asked:g} of {budget.of}; reached {budget.reached_blocks:.4f} of the "
            f"blocks' weights, {budget.reached_total:.4f} of all parameters",
        )
    ]
    if summary.recovery is not None:
        verdict = "accepted" if summary.recovery.accepted else "refused"
        lines.append(("recovery", f"{verdict}: {summary.recovery.reason}"))
    registration = summary.registration
    known = "the same version as before" if registration.reused else "new"
    lines += [
        ("package", _shown(summary.package.location)),
        ("report", _shown(summary.report)),
        ("registered", f"{registration.model_name} version {registration.version} ({known}), "
                       f"alias {registration.alias}"),
        ("log", str(log)),
    ]  # fmt: skip
    return lines


def _shown(path: str) -> str:
    """A path as short as it can be typed from here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)
