"""The table of the benchmark on a real model, out of the lines that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_rows import DENSE, MEASURES, SPEED, TASKS, rows
from benchmarks.real_tasks import mean_accuracy, mean_change
from benchmarks.tables import NOTHING, Table, write_between
from bipline.values.figures import TIMES

MADE = "made"
Lines = Sequence[dict[str, Any]]


def write_results(lines: Lines, results: Path) -> None:
    """Put the table between the markers of RESULTS.md, with what is not measured yet."""
    write_between(results, "real", told(lines))


def told(lines: Lines) -> str:
    """The table in Markdown, and the rows and measures that no line is of."""
    found = {(line["row"], line["measure"]): line["value"] for line in lines}
    texts = [each for each in MEASURES if each not in (TASKS, SPEED)]
    shown = [text for text in texts if any(measure == text for _, measure in found)]
    columns = (
        "row", "groups / channels", "M parameters", "MB", *shown, "processor s", "told", "GB",
    )  # fmt: skip
    listed = [row.name for row in rows()]
    there = [name for name in listed if any(row == name for row, _ in found)]
    table = Table("", columns, tuple(_row(name, shown, found) for name in there))
    missing = [name for name in listed if name not in there]
    parts = [table.markdown(), *_tasks(there, found), *_speeds(there, found)]
    if missing:
        parts.append(f"Not run: {'; '.join(missing)}.")
    unmeasured = [each for each in MEASURES if each not in shown]
    for name in (TASKS, SPEED):
        if any(measure == name for _, measure in found):
            unmeasured.remove(name)
    if unmeasured:
        parts.append(f"Measured for no row: {'; '.join(unmeasured)}.")
    return "\n\n".join(parts)


def _tasks(there: Sequence[str], found: dict[tuple[str, str], Any]) -> list[str]:
    """A table of zero-shot accuracies, where there are any."""
    answered = {name: found[name, TASKS] for name in there if (name, TASKS) in found}
    if not answered:
        return []
    names = list(next(iter(answered.values())))
    lines = []
    for row, answers in answered.items():
        shares = [f"{100 * each.count('1') / len(each):.1f}" for each in answers.values()]
        told = NOTHING
        if row != DENSE and DENSE in answered:
            change, reach = mean_change(answered[DENSE], answers)
            told = f"{100 * change:+.1f} ± {100 * reach:.1f}"
        lines.append((row, *shares, f"{100 * mean_accuracy(answers):.1f}", told))
    columns = ("row", *names, "mean", "change (95 %)")
    return [Table("", columns, tuple(lines)).markdown()]


def _speeds(there: Sequence[str], found: dict[tuple[str, str], Any]) -> list[str]:
    """A table of tokens a second, each model beside the dense one that it took turns with."""
    measured = {name: found[name, SPEED] for name in there if (name, SPEED) in found}
    if not measured:
        return []
    lines = tuple((row, *_factors(value["models"])) for row, value in measured.items())
    columns = ("row", "prefill", "decode", "prefill, batch 8", "decode, batch 8", "memory, GB")
    return [Table("", columns, lines).markdown()]


def _factors(models: dict[str, Any]) -> Iterator[str]:
    """Medians in tokens a second with the factor over the dense model, and the peak of memory."""
    dense, model = models["dense"], models["model"]
    for name in ("prefill", "decode"):
        key = f"{name}_median_tokens_per_second"
        yield f"{model[key]:,.0f} ({TIMES} {model[key] / dense[key]:.2f})"
    for name in ("prefill", "decode"):
        before, after = (each["filled"][name]["median"] for each in (dense, model))
        yield f"{after:,.0f} ({TIMES} {after / before:.2f})"
    yield f"{model['peak_memory_bytes'] / 1e9:.2f} ({dense['peak_memory_bytes'] / 1e9:.2f})"


def _row(name: str, texts: Sequence[str], found: dict[tuple[str, str], Any]) -> tuple[str, ...]:
    made = found.get((name, MADE), {})
    values = [found.get((name, text), {}).get("value") for text in texts]
    parameters = made.get("parameters")
    return (
        name,
        _widths(made.get("widths", ())),
        NOTHING if parameters is None else f"{parameters / 1e6:.1f}",
        f"{made['bytes'] / 1e6:.0f}" if "bytes" in made else NOTHING,
        *(NOTHING if value is None else f"{value:.2f}" for value in values),
        f"{made['processor_seconds']:.0f}" if "processor_seconds" in made else NOTHING,
        made.get("told") or NOTHING,
        f"{made['peak_anonymous_bytes'] / 1e9:.2f}" if "peak_anonymous_bytes" in made else NOTHING,
    )


def _widths(widths: Sequence[Sequence[int]]) -> str:
    if not widths:
        return NOTHING
    return f"{widths[0][0]} / {widths[0][1]}" if len(widths) == 1 else "by block"
