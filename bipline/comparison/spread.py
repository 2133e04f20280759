"""Spread: the repetitions of a combination, which differ in their seed, and how far they part."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel

from bipline.values.combination import Combination
from bipline.values.comparison import Comparison, Row
from bipline.values.figures import Figure, figures_of, kind_of, label_of, row_figures
from bipline.values.side_by_side import beside_dense

STARRED = "* scored from the sums of another criterion's pass, whose seconds count there"


# The head of a table of tasks and speed.
BESIDE = ("method", "ratio", "", "dense", "pruned", "change (95 %)", "McNemar's p")


class Spread(BaseModel, frozen=True, extra="forbid"):
    """Mean, least and most of a figure over seeds; the sample standard deviation from two on."""

    mean: float
    least: float
    most: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        mean, deviation = statistics.fmean(values), None
        if len(values) > 1:
            deviation = statistics.stdev(values)
        return cls(mean=mean, least=min(values), most=max(values), deviation=deviation)

    def text(self, show: Callable[[float], str]) -> str:
        """The mean; where seeds differ, with deviation and range."""
        if self.deviation is None or self.least == self.most:
            return show(self.mean)
        apart = f"{show(self.least)} to {show(self.most)}"
        return f"{show(self.mean)} ± {show(self.deviation).lstrip('+')} ({apart})"


@dataclass(frozen=True)
class Repeated:
    """The rows of one combination, a row a seed, in the order of the grid."""

    rows: tuple[Row, ...]

    @property
    def combination(self) -> Combination:
        """The combination; its seed is the first one's."""
        return self.rows[0].combination

    @cached_property
    def figures(self) -> list[dict[str, Figure]]:
        """The figures of the rows that have any."""
        return [row_figures(row) for row in self.rows if row.measured]

    @property
    def refusals(self) -> list[str]:
        """The reasons of the rows that have none, each once."""
        return list(dict.fromkeys(row.refusal for row in self.rows if row.refusal))

    @property
    def compensation(self) -> str:
        """What was to be corrected, and by what the matrices of the first row were."""
        tried = self.combination.compensation.label
        did = next((row.measured.compensated for row in self.rows if row.measured), None)
        return f"{tried} ({did.told})" if did else tried

    @property
    def shares_sums(self) -> bool:
        """Whether a row was scored from the sums of another criterion's pass."""
        return any(row.cost.sums_from for row in self.rows)

    def over(self, name: str) -> Spread | None:
        """The spread of a figure over the measured rows; None where one of them lacks it."""
        values = [figures[name].value for figures in self.figures if name in figures]
        return Spread.of(values) if values and len(values) == len(self.figures) else None

    def text(self, name: str, ranged: bool = True) -> str:
        """A figure for tables: the mean, ``ranged`` with how far the seeds part; the highest peak.

        One row alone is told with its standard error. A star says that the seconds of scoring
        count elsewhere.
        """
        spread, show = self.over(name), kind_of(name).text
        if spread is None:
            return ""
        if name == "peak_bytes":
            return show(spread.most)
        star = "*" if name == "seconds" and self.shares_sums else ""
        if len(self.figures) == 1:
            return self.figures[0][name].text + star
        return (spread.text(show) if ranged else show(spread.mean)) + star


def repeated(rows: Iterable[Row]) -> list[Repeated]:
    """Rows that differ in the seed alone, together; in the order they first come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        alike = row.combination.model_copy(update={"seed": 0})
        found.setdefault(alike.digest, []).append(row)
    return [Repeated(tuple(rows)) for rows in found.values()]


def ranked(comparison: Comparison, model: str) -> list[Repeated]:
    """A model's combinations as tables show them: by ratio, and there the best text first.

    Those that were refused come last.
    """
    found = repeated(row for row in comparison.rows if row.combination.model == model)
    first_text = f"perplexity.{comparison.texts[0]}"

    def place(each: Repeated) -> tuple[bool, float, float]:
        first = each.over(first_text)
        return first is None, each.combination.ratio, first.mean if first else 0.0

    return sorted(found, key=place)


def named(comparison: Comparison, tried: Combination, name: str) -> str:
    """A method's name, with its calibration where there are several."""
    return f"{name}, on {tried.calibration}" if len(comparison.calibrations) > 1 else name


def table_lines(
    comparison: Comparison, model: str, names: Sequence[str], ranged: Collection[str]
) -> list[list[str]]:
    """A model's table: the dense model, then every measured combination; a cell a figure.

    Before the figures stand method, compensation and ratio. Of the figures whose kinds are
    ``ranged`` it is told how far the seeds part.
    """
    record = comparison.models[model].record
    dense = figures_of(record, record) | _dense_experts(comparison, model)
    lines = [["dense", "", "", *(dense[name].text if name in dense else "" for name in names)]]
    lines += [
        [
            named(comparison, each.combination, each.combination.selection),
            each.compensation,
            f"{each.combination.ratio:g}",
            *(each.text(name, name.partition(".")[0] in ranged) for name in names),
        ]
        for each in ranked(comparison, model)
        if each.figures
    ]
    return lines


def sizes(comparison: Comparison) -> list[str]:
    """The figures of size that every table begins with."""
    experts = any(row.measured and row.measured.experts for row in comparison.rows)
    return ["parameters", *(["experts"] if experts else [])]


def _dense_experts(comparison: Comparison, model: str) -> dict[str, Figure]:
    """The experts of a dense model's block, which its rows tell; nothing without any."""
    for row in comparison.rows:
        if row.combination.model == model and row.measured and (told := row.measured.experts):
            return {"experts": Figure("experts", told.before)}
    return {}


def beside_lines(comparison: Comparison, model: str) -> list[list[str]]:
    """Tasks and speed of every row beside the dense model's, a line a figure, as :data:`BESIDE`.

    The change is told with its interval. Method and ratio stand in a row's first line, the seed
    where there are several.
    """
    record, lines = comparison.models[model].record, []
    for each in ranked(comparison, model):
        for row in each.rows:
            tried = row.combination
            name = f"{tried.method}, seed {tried.seed}" if len(each.rows) > 1 else tried.method
            about = [named(comparison, tried, name), f"{tried.ratio:g}"]
            for line in beside_dense(row, record):
                told = [label_of(line.name), line.dense, line.text, line.change, line.p_value]
                lines.append([*about, *told])
                about = ["", ""]
    return lines
