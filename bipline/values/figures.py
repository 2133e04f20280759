"""Figures: every number that bipline tells, by one name.

A name is a kind alone, ``parameters``, or a kind and what it was measured on: ``perplexity.TEXT``,
``acc.TASK``, ``seconds.STAGE``. Tables, card, reports, CSV, MLflow and selection take names,
titles and values from here, and write a value as its :class:`Kind` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bipline.values.comparison import Change, Row
from bipline.values.differences import paired_differences
from bipline.values.paired import PairedDifference
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord, Perplexity
from bipline.values.recovery import RecoveryRecord

NOT_MEASURED = "not measured"
# Above this many nats no perplexity is a number any more.
LARGEST_NATS = 700.0
# Signs as typeset: a real minus is as wide as a plus, so columns line up.
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
# Of a row of a comparison, and of each of its texts.
ROW_FIGURES = ("parameters", "parameters_ratio", "file_bytes", "seconds", "peak_bytes")
TEXT_FIGURES = ("perplexity", "perplexity_increase", "nll_increase")


def count_text(value: float) -> str:
    """A number of things, with separators."""
    return f"{value:,.0f}"


def byte_size(count: float) -> str:
    """A number of bytes for reading: decimal units, as disks and hubs count."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def perplexity_text(value: float) -> str:
    """Two decimals while they mean something, then powers of ten."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def _relative(dense: float, value: float) -> str:
    return _signed(100 * (value / dense - 1), " %") if dense else ""


def _points(dense: float, value: float) -> str:
    return _signed(100 * (value - dense), " points")


def _factor(dense: float, value: float) -> str:
    return f"{TIMES} {value / dense:.2f}" if dense else ""


def _signed(number: float, unit: str) -> str:
    text = f"{number:+,.1f}"
    # A change that rounds to nothing has no sign.
    return f"{'0.0' if float(text.replace(',', '')) == 0 else text.replace('-', MINUS)}{unit}"


@dataclass(frozen=True)
class Kind:
    """What a figure is called, in what it is counted, and how a value reads.

    ``change`` tells a value against the dense model's: in percent, points or as a factor; None
    where the figure is a change itself, or has no dense counterpart. ``tabled``: whether tables
    of models side by side show it.
    """

    title: str
    unit: str
    text: Callable[[float], str]
    better: Literal["lower", "higher", "neither"] = "lower"
    change: Callable[[float, float], str] | None = None
    tabled: bool = False


# In the order of every table.
KINDS: dict[str, Kind] = {
    "parameters": Kind("Parameters", "parameters", count_text, "lower", _relative, True),
    "parameters_ratio": Kind("Left", "share of the dense model's parameters", percent),
    "reached_blocks": Kind("Ratio of blocks", "share of linear weights", percent, "neither"),
    "reached_total": Kind("Ratio of all", "share of all parameters", percent, "neither"),
    "file_bytes": Kind("Weights on disk", "bytes", byte_size, "lower", _relative, True),
    "block_error_without": Kind("Block errors without", "sum over blocks", "{:.4f}".format),
    "block_error": Kind("Block errors", "sum over blocks", "{:.4f}".format),
    "perplexity": Kind("Perplexity", "per token", perplexity_text, "lower", _relative, True),
    "nll": Kind("NLL", "nats per token", "{:.4f}".format),
    "perplexity_increase": Kind("Perplexity increase", "share of dense", percent),
    "nll_increase": Kind("NLL change", "nats per token", "{:+.3f}".format),
    "acc": Kind("Accuracy", "share of rows", percent, "higher", _points, True),
    "acc_norm": Kind("Normalised accuracy", "share of rows", percent, "higher", _points, True),
    "prefill_tokens_per_second": Kind(
        "Prefill, tokens/s (median)", "tokens per second", count_text, "higher", _factor, True
    ),
    "decode_tokens_per_second": Kind(
        "Decode, tokens/s (median)", "tokens per second", count_text, "higher", _factor, True
    ),
    "seconds": Kind("Seconds", "seconds", "{:.1f}".format),
    "peak_bytes": Kind("Memory", "bytes of private memory", byte_size),
    "peak_device_bytes": Kind("Device memory", "bytes on the device", byte_size),
    "accepted": Kind("Accepted", "1 or 0", count_text, "higher"),
}


@dataclass(frozen=True)
class Figure:
    """A value by its name; with its standard error, or the median of its repeats, where known."""

    name: str
    value: float
    error: float | None = None
    median: float | None = None

    @property
    def text(self) -> str:
        """The value as it reads, and beside it the standard error or the median."""
        show = kind_of(self.name).text
        error = f" ± {show(self.error)}" if self.error else ""
        return show(self.value) + error + (f" ({show(self.median)})" if self.median else "")


@dataclass(frozen=True)
class Line:
    """One figure of models side by side: a text per model, and one's change against the dense."""

    name: str
    texts: dict[str, str]
    change: str

    @property
    def title(self) -> str:
        """What the line is called."""
        return title_of(self.name)


def kind_of(name: str) -> Kind:
    """The kind of a figure of this name. Raises KeyError where there is none."""
    return KINDS[name.partition(".")[0]]


def title_of(name: str) -> str:
    """What a figure is called for people: ``Perplexity, TEXT``."""
    subject = name.partition(".")[2]
    return f"{kind_of(name).title}, {subject}" if subject else kind_of(name).title


def label_of(name: str) -> str:
    """The title of a figure inside a sentence or a terminal's table: ``perplexity, TEXT``."""
    title = title_of(name)
    return title if title[1].isupper() else f"{title[0].lower()}{title[1:]}"


def row_names(texts: Iterable[str]) -> list[str]:
    """The figures that a row of a comparison on these texts can be selected by."""
    return [*ROW_FIGURES, *(f"{kind}.{text}" for text in texts for kind in TEXT_FIGURES)]


def figures_of(
    record: EvaluationRecord, dense: EvaluationRecord | None = None
) -> dict[str, Figure]:
    """Every figure of a record by name; beside ``dense`` also what is told against it.

    Texts and tasks are in the order of their names, whatever order they were measured in.
    """
    return {figure.name: figure for figure in _of_record(record, dense)}


def row_figures(row: Row) -> dict[str, Figure]:
    """Every figure of a row of a comparison by name; a refused one has none."""
    return {figure.name: figure for figure in _of_row(row)}


def values(figures: Mapping[str, Figure], prefix: str = "") -> dict[str, float]:
    """The bare numbers of figures, by their names behind a prefix; errors as ``NAME.stderr``."""
    found = {f"{prefix}{name}": figure.value for name, figure in figures.items()}
    errors = {name: figure.error for name, figure in figures.items()}
    return found | {f"{prefix}{name}.stderr": error for name, error in errors.items() if error}


def side_by_side(
    records: Mapping[str, EvaluationRecord], changed: str = "", against: str = "dense"
) -> list[Line]:
    """The figures of models under one protocol as tables show them.

    ``changed`` names the record whose change is told, ``against`` the one it is taken from: with
    its interval where both were measured on the same windows or rows.
    """
    found = {model: figures_of(record) for model, record in records.items()}
    pairs = paired_differences(records[against], records[changed]) if changed else {}
    ends = found.get(against, {}), found.get(changed, {})
    names = dict.fromkeys(name for figures in found.values() for name in figures)
    places = list(KINDS)
    # What only some of the models have comes where the others' stand.
    order = sorted(names, key=lambda name: places.index(name.partition(".")[0]))
    return [
        Line(
            name,
            {model: f[name].text if name in f else NOT_MEASURED for model, f in found.items()},
            _change(ends[0].get(name), ends[1].get(name), pairs.get(_paired_name(name))),
        )
        for name in order
        if kind_of(name).tabled
    ]


def metrics_of(
    records: Mapping[str, EvaluationRecord], plan: PruningPlan, recovery: RecoveryRecord | None
) -> dict[str, float]:
    """Every figure of a compress run by dotted name, such as ``pruned.perplexity.TEXT``."""
    told = {
        "ratio.reached_blocks": plan.budget.reached_blocks,
        "ratio.reached_total": plan.budget.reached_total,
    }
    if recovery is not None:
        told["recovery.accepted"] = float(recovery.accepted)
    for model, record in records.items():
        dense = None if model == "dense" else records.get("dense")
        told |= values(figures_of(record, dense), f"{model}.")
    return told


def _paired_name(name: str) -> str:
    """Perplexities are compared by their nats."""
    kind, _, subject = name.partition(".")
    return f"nll.{subject}" if kind == "perplexity" else name


def _change(dense: Figure | None, one: Figure | None, pair: PairedDifference | None) -> str:
    """A change with its 95 % interval; one inside its interval is none."""
    if dense is None or one is None or (tell := kind_of(one.name).change) is None:
        return ""
    if pair is None or pair.low is None or pair.high is None:
        return tell(dense.value, one.value)
    low, high = (tell(dense.value, _moved(dense, end)) for end in (pair.low, pair.high))
    told = tell(dense.value, one.value) if pair.is_told else "no difference"
    return f"{told} ({low} to {high})"


def _moved(dense: Figure, difference: float) -> float:
    """The dense value and a difference of it; of a perplexity the difference is in nats."""
    if dense.name.startswith("perplexity."):
        return dense.value * math.exp(min(difference, LARGEST_NATS))
    return dense.value + difference


def _of_record(record: EvaluationRecord, dense: EvaluationRecord | None) -> Iterator[Figure]:
    yield Figure("parameters", record.parameters)
    if dense:
        yield Figure("parameters_ratio", record.parameters / dense.parameters)
    yield Figure("file_bytes", record.file_bytes)
    pairs = paired_differences(dense, record) if dense else {}
    for text, found in sorted(record.perplexity.items()):
        before, pair = dense.perplexity.get(text) if dense else None, pairs.get(f"nll.{text}")
        yield from _of_text(text, found, Change.of(before, found, pair) if before else None)
    for task, result in sorted(record.tasks.items()):
        yield Figure(f"acc.{task}", result.acc, error=result.stderr)
        if result.acc_norm is not None:
            yield Figure(f"acc_norm.{task}", result.acc_norm, error=result.acc_norm_stderr)
    if speed := record.speed:
        for name in ("prefill", "decode"):
            best = getattr(speed, f"{name}_tokens_per_second")
            median = getattr(speed, f"{name}_median_tokens_per_second")
            yield Figure(f"{name}_tokens_per_second", best, median=median)


def _of_row(row: Row) -> Iterator[Figure]:
    if (measured := row.measured) is None:
        return
    yield Figure("parameters", measured.parameters.after)
    yield Figure("parameters_ratio", measured.parameters.ratio)
    yield Figure("reached_blocks", measured.ratio.reached_blocks)
    yield Figure("reached_total", measured.ratio.reached_total)
    yield Figure("file_bytes", measured.file_bytes)
    if did := measured.compensated:
        yield Figure("block_error_without", sum(did.error_without))
        yield Figure("block_error", sum(did.error))
    for text, found in sorted(measured.perplexity.items()):
        yield from _of_text(text, found, measured.change.get(text))
    for stage, seconds in row.cost.seconds.items():
        yield Figure(f"seconds.{stage}", seconds)
    yield Figure("seconds", row.cost.total_seconds)
    yield Figure("peak_bytes", row.cost.peak_anonymous_bytes)
    yield Figure("peak_device_bytes", row.cost.peak_device_bytes)


def _of_text(text: str, found: Perplexity, change: Change | None) -> Iterator[Figure]:
    yield Figure(f"perplexity.{text}", found.value, error=found.stderr)
    yield Figure(f"nll.{text}", found.nll, error=found.nll_stderr)
    if change:
        # Where a perplexity is so high that the dense one is lost beside it, nats still tell.
        dense = found.value - change.perplexity
        share = change.perplexity / dense if dense else math.expm1(change.nll)
        yield Figure(f"perplexity_increase.{text}", share)
        error = change.paired.stderr if change.paired else None
        yield Figure(f"nll_increase.{text}", change.nll, error=error)
