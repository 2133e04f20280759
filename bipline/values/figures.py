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

from bipline.values.comparison import Change, Measured, Row
from bipline.values.differences import paired_differences
from bipline.values.export import ExportRecord
from bipline.values.paired import PairedDifference
from bipline.values.record import EvaluationRecord, Perplexity, TaskResult
from bipline.values.speed import Speed, Spread

# Signs as typeset: a real minus is as wide as a plus, so columns line up.
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
# Of a row of a comparison, of each of its texts and tasks, and of its speed at batch 1.
ROW_FIGURES = ("parameters", "parameters_ratio", "file_bytes", "seconds", "peak_bytes")
TEXT_FIGURES = ("perplexity", "perplexity_increase", "nll_increase")
TASK_FIGURES = ("acc", "acc_change", "acc_p", "acc_norm", "acc_norm_change", "acc_norm_p")
# Of what a format's engine measured, each by ``KIND.FORMAT.TEXT``; sizes by ``KIND.FORMAT``.
FORMAT_TEXT_FIGURES = ("format_perplexity", "format_perplexity_increase")
FORMAT_FIGURES = ("format_bytes", *FORMAT_TEXT_FIGURES)
# Whose speeds a row has.
DENSE, PRUNED = "dense", "pruned"
FACTORS = {name: f"{name}_factor" for name in ("prefill", "decode")}
SPEED_FIGURES = (
    *(f"{name}_tokens_per_second" for name in FACTORS), *FACTORS.values(),
    "first_token_seconds", "running_bytes", "load_seconds",
)  # fmt: skip


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


def _points_text(share: float) -> str:
    return _signed(100 * share, " points")


def _factor(value: float) -> str:
    return f"{TIMES} {value:.2f}"


def _nats(dense: float, value: float) -> str:
    return _signed(value - dense, "", 4)


def seconds_text(value: float) -> str:
    """Seconds, or milliseconds where it is less than one."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _signed(number: float, unit: str, decimals: int = 1) -> str:
    text = f"{number:+,.{decimals}f}"
    # A change that rounds to nothing has no sign.
    return f"{text[1:] if float(text.replace(',', '')) == 0 else text.replace('-', MINUS)}{unit}"


@dataclass(frozen=True)
class Kind:
    """What a figure is called, in what it is counted, and how a value reads.

    ``change`` tells a value against the dense model's: in percent or points; None where the
    figure is a change itself, has no dense counterpart, or is told as a factor of repeats.
    ``tabled``: whether tables of models side by side show it.
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
    "experts": Kind("Experts", "of a block", count_text),
    "reached_blocks": Kind("Ratio of blocks", "share of linear weights", percent, "neither"),
    "reached_total": Kind("Ratio of all", "share of all parameters", percent, "neither"),
    "file_bytes": Kind("Weights on disk", "bytes", byte_size, "lower", _relative, True),
    "block_error_without": Kind("Block errors without", "sum over blocks", "{:.4f}".format),
    "block_error": Kind("Block errors", "sum over blocks", "{:.4f}".format),
    "perplexity": Kind("Perplexity", "per token", perplexity_text, "lower", _relative, True),
    "nll": Kind("NLL", "nats per token", "{:.4f}".format, "lower", _nats),
    "perplexity_increase": Kind("Perplexity increase", "share of dense", percent),
    "nll_increase": Kind("NLL change", "nats per token", "{:+.3f}".format),
    "acc": Kind("Accuracy", "share of rows", percent, "higher", _points, True),
    "acc_norm": Kind("Normalised accuracy", "share of rows", percent, "higher", _points, True),
    "acc_change": Kind("Accuracy change", "share of rows", _points_text, "higher"),
    "acc_norm_change": Kind("Normalised accuracy change", "share of rows", _points_text, "higher"),
    "acc_p": Kind("McNemar's p", "probability", "{:.3f}".format, "neither"),
    "acc_norm_p": Kind(
        "McNemar's p, normalised accuracy", "probability", "{:.3f}".format, "neither"
    ),
    "prefill_tokens_per_second": Kind(
        "Prefill, tokens/s (median)", "tokens per second", count_text, "higher", None, True
    ),
    "decode_tokens_per_second": Kind(
        "Decode, tokens/s (median)", "tokens per second", count_text, "higher", None, True
    ),
    "prefill_factor": Kind("Prefill factor", "times the dense model's", _factor, "higher"),
    "decode_factor": Kind("Decode factor", "times the dense model's", _factor, "higher"),
    "first_token_seconds": Kind(
        "First token (median)", "seconds", seconds_text, "lower", None, True
    ),
    "running_bytes": Kind(
        "Memory of the running model",
        "bytes of private memory",
        byte_size,
        "lower",
        _relative,
        True,
    ),
    "load_seconds": Kind("Loading", "seconds", seconds_text, "lower", None, True),
    "format_bytes": Kind("Size of the format", "bytes", byte_size),
    "format_perplexity": Kind(
        "Perplexity of the format by its engine", "per token", perplexity_text
    ),
    "format_perplexity_increase": Kind(
        "Perplexity increase of the format", "share of the model's on the same windows", percent
    ),
    "seconds": Kind("Seconds", "seconds", "{:.1f}".format),
    "peak_bytes": Kind("Memory", "bytes of private memory", byte_size),
    "peak_device_bytes": Kind("Device memory", "bytes on the device", byte_size),
    "accepted": Kind("Accepted", "1 or 0", count_text, "higher"),
}


@dataclass(frozen=True)
class Figure:
    """A value by its name; with its standard error, or how its repeats spread, where known."""

    name: str
    value: float
    error: float | None = None
    spread: Spread | None = None

    @property
    def text(self) -> str:
        """The value as it reads, with its standard error or its quartiles."""
        show = kind_of(self.name).text
        error = f" ± {show(self.error).lstrip('+')}" if self.error is not None else ""
        return show(self.value) + error + (_spread_text(self.spread, show) if self.spread else "")


def _spread_text(spread: Spread, show: Callable[[float], str]) -> str:
    return f" [{show(spread.lower)}, {show(spread.upper)}]"


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


def row_names(
    texts: Iterable[str], tasks: Iterable[str] = (), with_speed: bool = False
) -> list[str]:
    """The figures that a row of a comparison on these texts and tasks can be selected by."""
    of_texts = [f"{kind}.{text}" for text in texts for kind in TEXT_FIGURES]
    of_tasks = [f"{kind}.{task}" for task in tasks for kind in TASK_FIGURES]
    return [*ROW_FIGURES, *of_texts, *of_tasks, *(SPEED_FIGURES if with_speed else ())]


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
    told = [(figure.name, figure.error) for figure in figures.values()]
    return found | {f"{prefix}{name}.stderr": error for name, error in told if error is not None}


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
        yield from _of_task(task, result)
    if record.speed:
        yield from speed_figures(record.speed)


def format_figures(exports: Mapping[str, ExportRecord]) -> dict[str, Figure]:
    """What engines measured of each format's own file: ``format_perplexity.FORMAT.TEXT``.

    On the first windows of a text, so beside the model's own on the same, and no other figure.
    """
    return {figure.name: figure for name in exports for figure in _of_format(name, exports[name])}


def _of_format(name: str, record: ExportRecord) -> Iterator[Figure]:
    yield Figure(f"format_bytes.{name}", record.file_bytes)
    for text, found in record.perplexity.items():
        subject, engine = f"{name}.{text}", found.engine
        yield Figure(f"format_perplexity.{subject}", engine.value, error=engine.stderr)
        # By nats, so that no perplexity is too high to be divided by.
        share = math.expm1(engine.nll - found.model.nll)
        yield Figure(f"format_perplexity_increase.{subject}", share)


def speed_figures(speed: Speed) -> Iterator[Figure]:
    """Of batch 1 under the bare names; of a filled batch with its size behind them."""
    for name in ("prefill", "decode"):
        yield _repeated(f"{name}_tokens_per_second", getattr(speed, name))
        if speed.filled:
            subject = f"batch-{speed.filled.batch_size}"
            yield _repeated(f"{name}_tokens_per_second.{subject}", getattr(speed.filled, name))
    if speed.first_token_seconds:
        yield _repeated("first_token_seconds", speed.first_token_seconds)
    if speed.peak_memory_bytes:
        yield Figure("running_bytes", speed.peak_memory_bytes)
    if speed.load_seconds:
        yield Figure("load_seconds", speed.load_seconds)


def _repeated(name: str, spread: Spread) -> Figure:
    return Figure(name, spread.median, spread=spread)


def _of_row(row: Row) -> Iterator[Figure]:
    if (measured := row.measured) is None:
        return
    yield Figure("parameters", measured.parameters.after)
    yield Figure("parameters_ratio", measured.parameters.ratio)
    if measured.experts:
        yield Figure("experts", measured.experts.after)
    yield Figure("reached_blocks", measured.ratio.reached_blocks)
    yield Figure("reached_total", measured.ratio.reached_total)
    yield Figure("file_bytes", measured.file_bytes)
    if did := measured.compensated:
        yield Figure("block_error_without", sum(did.error_without))
        yield Figure("block_error", sum(did.error))
    for text, found in sorted(measured.perplexity.items()):
        yield from _of_text(text, found, measured.change.get(text))
    for task, result in sorted((measured.tasks or {}).items()):
        yield from _of_task(task, result)
    for name, pair in sorted((measured.answers or {}).items()):
        yield from _of_answers(name, pair)
    yield from _of_speeds(measured)
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


def _of_task(task: str, result: TaskResult) -> Iterator[Figure]:
    yield Figure(f"acc.{task}", result.acc, error=result.stderr)
    if result.acc_norm is not None:
        yield Figure(f"acc_norm.{task}", result.acc_norm, error=result.acc_norm_stderr)


def _of_answers(name: str, pair: PairedDifference) -> Iterator[Figure]:
    """The change of an accuracy against the dense model on the same rows, and McNemar's p."""
    kind, _, task = name.partition(".")
    yield Figure(f"{kind}_change.{task}", pair.difference, error=pair.stderr)
    if pair.p_value is not None:
        yield Figure(f"{kind}_p.{task}", pair.p_value)


def _of_speeds(measured: Measured) -> Iterator[Figure]:
    """Speeds of a row, and factors over the dense model that took turns with it, where told."""
    if (speeds := measured.speeds) is None:
        return
    dense, pruned = speeds.models[DENSE], speeds.models[PRUNED]
    yield from speed_figures(pruned)
    for name, factor in FACTORS.items():
        if told := getattr(pruned, name).factor_over(getattr(dense, name)):
            yield _repeated(factor, told)
