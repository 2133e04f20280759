"""Figures of models side by side, and what one's are against another's.

A change is told with its 95 % interval where both models were measured on the same windows or rows,
and one inside its interval as none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bipline.values.comparison import Row
from bipline.values.differences import kind_name, paired_differences
from bipline.values.figures import (
    DENSE,
    KINDS,
    TIMES,
    Figure,
    figures_of,
    kind_of,
    row_figures,
    speed_figures,
    title_of,
)
from bipline.values.paired import LARGEST_NATS, PairedDifference
from bipline.values.record import EvaluationRecord
from bipline.values.speed import Speeds, Spread

NOT_MEASURED = "not measured"
# Where the ranges of repeats overlap.
NO_DIFFERENCE = "no difference told"
# What tables of rows show in columns.
OF_EVERY_ROW = ("parameters", "file_bytes", "perplexity")


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
            change_text(ends[0].get(name), ends[1].get(name), pairs.get(paired_name(name))),
        )
        for name in order
        if kind_of(name).tabled
    ]


@dataclass(frozen=True)
class BesideDense:
    """A figure of a row beside the dense model's: both as they read, the change, and McNemar's p.

    Speeds of the dense model are those of its turns with this row.
    """

    name: str
    dense: str
    text: str
    change: str
    p_value: str


def beside_dense(row: Row, record: EvaluationRecord) -> list[BesideDense]:
    """The accuracies and speeds of a row of a comparison; nothing where it has none."""
    if (measured := row.measured) is None:
        return []
    before, after, pairs = figures_of(record), row_figures(row), measured.answers or {}
    if measured.speeds:
        before |= {each.name: each for each in speed_figures(measured.speeds.models[DENSE])}
    lines = []
    for name, figure in after.items():
        dense, pair = before.get(name), pairs.get(name)
        if dense is None or kind_name(name) in OF_EVERY_ROW or not kind_of(name).tabled:
            continue
        p_value = after.get(f"{kind_name(name)}_p.{name.partition('.')[2]}")
        lines.append(
            BesideDense(
                name, dense.text, figure.text, change_text(dense, figure, pair),
                p_value.text if p_value else "",
            )
        )  # fmt: skip
    return lines


def speed_lines(speeds: Speeds, changed: str = "") -> list[Line]:
    """The same of speeds alone."""
    found = {
        model: {figure.name: figure for figure in speed_figures(speed)}
        for model, speed in speeds.models.items()
    }
    names = dict.fromkeys(name for figures in found.values() for name in figures)
    ends = found.get("dense", {}), found.get(changed, {})
    return [
        Line(
            name,
            {model: f[name].text if name in f else NOT_MEASURED for model, f in found.items()},
            change_text(ends[0].get(name), ends[1].get(name), None),
        )
        for name in names
    ]


def factor_text(one: Spread, dense: Spread) -> str:
    """Repeats against the dense model's: a factor with its range, if any is told."""
    factor = one.factor_over(dense)
    if factor is None:
        return NO_DIFFERENCE
    return f"{TIMES} {factor.median:.2f} [{factor.lower:.2f}, {factor.upper:.2f}]"


def paired_name(name: str) -> str:
    """Perplexities are compared by their nats."""
    kind, _, subject = name.partition(".")
    return f"nll.{subject}" if kind == "perplexity" else name


def change_text(dense: Figure | None, one: Figure | None, pair: PairedDifference | None) -> str:
    """A change with its 95 % interval; one inside its interval is none."""
    if dense and one and dense.spread and one.spread:
        return factor_text(one.spread, dense.spread)
    if dense is None or one is None or (tell := kind_of(one.name).change) is None:
        return ""
    if pair is None or pair.low is None or pair.high is None:
        return tell(dense.value, one.value)
    low, high = (tell(dense.value, _moved(dense, end)) for end in (pair.low, pair.high))
    told = tell(dense.value, one.value) if pair.is_told else NO_DIFFERENCE
    return f"{told} ({low} to {high})"


def _moved(dense: Figure, difference: float) -> float:
    """The dense value and a difference of it; of a perplexity the difference is in nats."""
    if dense.name.startswith("perplexity."):
        return dense.value * math.exp(min(difference, LARGEST_NATS))
    return dense.value + difference
