"""Figures that others published, beside those of this run: told apart in every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from bipline.settings.published import PublishedRow
from bipline.values.figures import percent, perplexity_text
from bipline.values.record import EvaluationRecord

NOT_PUBLISHED, NOT_MEASURED = "not published", "not measured"


def published_table(
    rows: Sequence[PublishedRow], measured: Mapping[str, EvaluationRecord], removed: float
) -> tuple[list[str], list[list[str]]]:
    """Heading and lines: this run's models first, then what others printed, each with its source.

    ``removed`` is the share of all parameters that this run's pruned models lack.
    """
    texts = sorted({text for row in rows for text in row.perplexity})
    own = [
        [f"this run, {name}", percent(0 if name == "dense" else removed), *_own(record, texts), ""]
        for name, record in measured.items()
    ]
    others = [
        [f"{row.method}, {row.model}", percent(row.removed), *_printed(row, texts), row.source]
        for row in rows
    ]
    head = ["Model", "Removed", *(f"Perplexity, {text}" for text in texts), "Accuracy, %", "Source"]
    return head, [*own, *others]


def _own(record: EvaluationRecord, texts: Sequence[str]) -> list[str]:
    found = [record.perplexity.get(text) for text in texts]
    shown = [f"{perplexity_text(each.value)}{_error(each.stderr)}" if each else NOT_MEASURED
             for each in found]  # fmt: skip
    tasks = [task.acc if task.acc_norm is None else task.acc_norm for task in record.tasks.values()]
    return [*shown, f"{100 * fmean(tasks):.2f} of {len(tasks)} tasks" if tasks else NOT_MEASURED]


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {perplexity_text(stderr)}"


def _printed(row: PublishedRow, texts: Sequence[str]) -> list[str]:
    shown = [f"{row.perplexity[t]:.2f}" if t in row.perplexity else NOT_PUBLISHED for t in texts]
    return [*shown, NOT_PUBLISHED if row.accuracy is None else f"{row.accuracy:.2f}"]
