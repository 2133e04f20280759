"""The tables a command ends with, and the lines below them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bipline.base.printable import printable
from bipline.comparison.spread import (
    BESIDE,
    STARRED,
    Repeated,
    beside_lines,
    named,
    ranked,
    sizes,
    table_lines,
)
from bipline.values.comparison import Comparison, SweepSummary
from bipline.values.compensation import counts_text
from bipline.values.figures import byte_size, kind_of, label_of
from bipline.values.promotion import History, HistoryLine, Promotion
from bipline.values.record import EvaluationRecord
from bipline.values.record_difference import RecordDifference
from bipline.values.side_by_side import side_by_side, speed_lines
from bipline.values.speed import Speeds
from bipline.values.summary import PruneSummary, RunSummary, SeveralSummary
from bipline.values.verdict import Verdict


def print_evaluated(console: Console, records: dict[str, EvaluationRecord], log: Path) -> None:
    """The end of ``bipline evaluate``: models side by side, and the first against the other."""
    console.print(evaluation_table(records))
    if "baseline" in records:
        print_change(console, records, "model", "baseline")
    timed = [each.speed for each in records.values() if each.speed]
    remarks = [line for each in timed for line in each.remarks or ()]
    print_lines(console, [*remarks, f"log: {log}"])


def print_speeds(console: Console, speeds: Speeds, log: Path) -> None:
    """The end of ``bipline speed``: models side by side, and why one is not faster."""
    told = speed_lines(speeds, "model")
    several = len(speeds.models) > 1
    lines = [
        [label_of(line.name), *line.texts.values(), *([line.change] if several else [])]
        for line in told
    ]
    head = ["", *speeds.models, *(["against dense"] if several else [])]
    console.print(table_of(head, lines, left={0}))
    remarks = [line for each in speeds.models.values() for line in each.remarks or ()]
    print_lines(console, [*remarks, f"log: {log}"])


def print_difference(
    console: Console, difference: RecordDifference, names: tuple[str, str], log: Path
) -> None:
    """The end of ``bipline diff``: the figures of both, the change, and McNemar's p."""
    lines = []
    for name, found in difference.figures.items():
        show, pair = kind_of(name).text, found.paired
        p = f"{pair.p_value:.3f}" if pair and pair.p_value is not None else ""
        lines.append([label_of(name), show(found.before), show(found.after), found.change, p])
    head = ["", *names, "change (95 %)", "McNemar's p"]
    console.print(table_of(head, lines, left={0}))
    print_lines(console, [f"protocol {difference.protocol_digest}", f"log: {log}"])


def print_change(
    console: Console, records: dict[str, EvaluationRecord], changed: str, against: str
) -> None:
    """A table of what one model's figures are against another's, with 95 % intervals."""
    lines = side_by_side({name: records[name] for name in (against, changed)}, changed, against)
    told = [[label_of(line.name), line.change] for line in lines if line.change]
    console.print()
    console.print(table_of([f"{changed} against {against}", "change (95 %)"], told, left={0}))
    console.print()


def print_pruned(console: Console, summary: PruneSummary, log: Path, verbose: bool = False) -> None:
    """The end of ``bipline prune``: sizes and ratio; ``verbose`` also seconds beside the floor."""
    ratio, parameters, seconds = summary.ratio, summary.parameters, summary.seconds
    told = (
        f"{summary.out}: {parameters.before:,} -> {parameters.after:,} parameters; ratio asked "
        f"{ratio['asked']:g} of {ratio['of']}, reached {ratio['reached_blocks']:.4f} of the "
        f"blocks, {ratio['reached_total']:.4f} of all; {seconds.total:.1f} s, "
        f"peak memory {byte_size(summary.peak_anonymous_bytes)}"
    )
    floor = _floor_lines(summary) if verbose else []
    print_lines(console, [told, *_compensation_line(summary.compensation), *floor, f"log: {log}"])


def print_ended(console: Console, summary: RunSummary | SweepSummary, log: Path) -> None:
    """The end of a pipeline: figures, how its stages came out, and where everything lies."""
    if isinstance(summary, SweepSummary):
        print_tables(console, summary.comparison)
        print_named(console, {**_sweep_lines(summary), "log": str(log)})
        return
    stages = [[stage.name, f"{stage.seconds:.1f}", stage.status] for stage in summary.stages]
    figures = evaluation_table(summary.records)
    console.print()
    console.print(figures)
    print_change(console, summary.records, list(summary.records)[-1], "dense")
    console.print(table_of(["stage", "seconds", ""], stages, left={0, 2}))
    console.print()
    print_named(console, {**_compress_lines(summary), "log": str(log)}, 12)


def print_several(console: Console, summary: SeveralSummary, log: Path) -> None:
    """The end of several models: a line each, then each one's report or why it failed."""
    lines, places = [], {}
    for each in summary.models:
        size = seconds = version = ""
        places[each.name] = f"{_shown(each.model)}: {each.reason}"
        if (made := each.summary) is not None:
            dense, *_, last = made.records.values()
            size = f"{last.parameters:,} of {dense.parameters:,}"
            seconds = f"{made.seconds:.1f}"
            version = f"{made.registration.version}, {made.registration.alias}"
            why = f"{each.reason}; " if each.reason else ""
            places[each.name] = f"{_shown(each.model)}: {why}report {_shown(made.report)}"
        lines.append([each.name, each.ended, str(each.exit_code), size, seconds, version])
    console.print()
    head = ["registered", "", "exit code", "parameters", "seconds", "version"]
    console.print(table_of(head, lines, left={0, 1, 5}))
    console.print()
    width = 2 + max(len(each.name) for each in summary.models)
    print_named(console, {name: printable(text) for name, text in places.items()}, width)
    print_lines(console, [f"log: {log}"])


def print_compared(console: Console, comparison: Comparison, out: Path, log: Path) -> None:
    """Every model's table, then where results and log lie."""
    print_tables(console, comparison)
    places = {"results": "json", "rows": "csv", "report": "html"}
    shown = {name: str(out / f"comparison.{suffix}") for name, suffix in places.items()}
    print_named(console, {**shown, "log": str(log)})


def print_tables(console: Console, comparison: Comparison) -> None:
    """A table for every model: dense first, then by ratio and perplexity; refusals below."""
    names = [
        *sizes(comparison), *(f"perplexity.{text}" for text in comparison.texts),
        f"nll_increase.{comparison.texts[0]}", "seconds", "peak_bytes",
    ]  # fmt: skip
    head = ["method", "compensation", "ratio", *map(label_of, names)]
    for model in comparison.models:
        found = ranked(comparison, model)
        lines = table_lines(comparison, model, names, ranged={"perplexity"})
        console.print()
        console.print(table_of(head, lines, left={0, 1}, title=model))
        starred = [STARRED] if any(each.shares_sums for each in found) else []
        print_lines(console, [*starred, *_refused(comparison, found)])
        if beside := beside_lines(comparison, model):
            console.print()
            title = f"{model}: tasks and speed beside dense"
            console.print(table_of(BESIDE, beside, left={0, 2}, title=title))
    console.print()


def evaluation_table(records: dict[str, EvaluationRecord]) -> Table:
    """Models side by side: a column each, a row per figure."""
    lines = [[label_of(line.name), *line.texts.values()] for line in side_by_side(records)]
    return table_of(["", *records], lines, left={0})


def print_named(console: Console, lines: dict[str, str], width: int = 10) -> None:
    """A line each: its name in a column of this width, then what it tells."""
    print_lines(console, (f"{name:<{width}}{text}" for name, text in lines.items()))


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Lines as they are, however long: nothing in them is markup."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def table_of(
    head: Sequence[str], lines: Iterable[Sequence[str]], left: set[int], title: str | None = None
) -> Table:
    """A table whose columns are aligned to the right, but for those numbered in ``left``."""
    shown = Text(printable(title)) if title else None
    table = Table(box=None, pad_edge=False, header_style="bold", title=shown, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(Text(printable(name)), justify="left" if number in left else "right")
    for line in lines:
        table.add_row(*(Text(printable(cell)) for cell in line))
    return table


def _refused(comparison: Comparison, found: list[Repeated]) -> list[str]:
    """A line a method and reason, with the ratios it is the reason for."""
    ratios: dict[tuple[str, str], list[str]] = {}
    for each in found:
        method = named(comparison, each.combination, each.combination.method)
        for reason in each.refusals:
            ratios.setdefault((method, reason), []).append(f"{each.combination.ratio:g}")
    return [
        f"refused: {name}, ratio {', '.join(shares)}: {reason}"
        for (name, reason), shares in ratios.items()
    ]


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


def _compress_lines(summary: RunSummary) -> dict[str, str]:
    budget, registration = summary.plan.budget, summary.registration
    lines = {
        "ratio": f"asked {budget.asked:g} of {budget.of}; reached {budget.reached_blocks:.4f} of "
        f"the blocks' weights, {budget.reached_total:.4f} of all parameters"
    }
    if summary.recovery is not None:
        verdict = "accepted" if summary.recovery.accepted else "refused"
        lines["recovery"] = f"{verdict}: {summary.recovery.reason}"
    known = "the same version as before" if registration.reused else "new"
    if registration.verdict is not None:
        lines["gate"] = verdict_line(registration.verdict)
    if summary.unchanged:
        lines["unchanged"] = "the same files, configuration and code as before; nothing was made"
    return {
        **lines,
        "package": _shown(summary.package.location),
        "report": _shown(summary.report),
        "registered": f"{registration.model_name} version {registration.version} ({known}), "
        f"alias {registration.alias}",
        **({"also": "; ".join(map(str, registration.also))} if registration.also else {}),
    }


def verdict_line(verdict: Verdict) -> str:
    """What a gate came to, in a line."""
    count, refused = len(verdict.checks), len(verdict.refusals)
    told = f"{verdict.gate}, for {verdict.alias}: {count - refused} of {count} checks passed"
    return told + (f"; overridden by {verdict.override.by}" if verdict.override else "")


def print_promoted(console: Console, done: Promotion) -> None:
    """The end of ``promote`` and ``rollback``: the checks, and where the alias points."""
    if done.verdict:
        print_verdict(console, done.verdict)
    print_lines(console, map(printable, map(str, (done, *done.also))))


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Every check of a gate: its answer, its name, and what it says."""
    rows = [[check.answer, check.name, check.sentence] for check in verdict.checks]
    print_lines(console, (printable(f"{a:<12}{name}: {told}") for a, name, told in rows))
    print_named(console, {"gate": printable(verdict_line(verdict))})


def print_history(console: Console, told: History) -> None:
    """The journal of a registered model, the last entry last, and what does not agree with it."""
    lines = [_entry_line(line) for line in told.lines]
    served = [f"{alias:<20}version {version}" for alias, version in told.champions.items()]
    wrong = [f"differs: {sentence}" for sentence in told.differs]
    print_lines(console, map(printable, [*(lines or ["no entry yet"]), *served, *wrong]))


def _entry_line(line: HistoryLine) -> str:
    entry = line.entry
    end = "" if line.won else "  (lost: another one came first)"
    why = f"  overridden by {entry.override.by}: {entry.override.reason}" if entry.override else ""
    why += f"  {entry.by or ''}: {entry.reason}" if entry.reason else ""
    return (
        f"{line.number:>4}  {entry.at}  {entry.action:<9}{entry.alias}  version {entry.version}  "
        f"by {entry.user}{why}{end}"
    )


def _sweep_lines(summary: SweepSummary) -> dict[str, str]:
    best, told = summary.best, "nothing was selected"
    if best is not None:
        tried, value = best.rows[0].combination, kind_of(best.figure).text(best.value)
        told = f"{tried.method}, ratio {tried.ratio:g}: {label_of(best.figure)} {value}"
    known = [stage.status for stage in summary.stages]
    counted = ", ".join(f"{known.count(status)} {status}" for status in dict.fromkeys(known))
    return {
        "best": told,
        "stages": f"{counted}; {summary.seconds:.1f} s",
        "report": summary.report,
        "run": f"{summary.run_name}, in MLflow {summary.mlflow_run_id}",
    }


def _shown(path: str) -> str:
    """A path as short as it can be typed from here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)
