"""Curves of a comparison: each method's perplexity over what it leaves of the model, with spans.

A span is the range over seeds where several were run, else the 95 % interval of the change against
the dense model, over the same windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bipline.comparison.spread import Repeated, Spread, named, repeated
from bipline.delivery.curves import Curve, Point
from bipline.values.comparison import Comparison, Row
from bipline.values.figures import percent, perplexity_text
from bipline.values.paired import LARGEST_NATS


@dataclass(frozen=True)
class Span:
    """A combination's perplexity on a text, and between which values it lies."""

    repeated: Repeated
    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The value and its ends, where they differ."""
        ends = f"{perplexity_text(self.low)} to {perplexity_text(self.high)}"
        told = perplexity_text(self.value)
        return told if self.low == self.high else f"{told} ({ends})"


def spans(comparison: Comparison, model: str, text: str) -> dict[str, list[Span]]:
    """Of every method of a model that was measured, from the largest model to the smallest.

    Methods are in the order of the grid.
    """
    dense = comparison.models[model].record.perplexity[text].value
    found: dict[str, list[Span]] = {name: [] for name in by_method(comparison)}
    for name, rows in by_method(comparison).items():
        for each in repeated(row for row in rows if row.combination.model == model):
            if spread := each.over(f"perplexity.{text}"):
                found[name].append(_span(each, spread, text, dense))
        found[name].sort(key=lambda span: -_left(span))
    return found


def curves_of(told: dict[str, list[Span]]) -> list[Curve]:
    """Curves over the share of parameters that is left, in percent.

    A method has the same number, so it looks the same, in every picture.
    """
    return [
        Curve(name, number, tuple(_point(name, span) for span in found))
        for number, (name, found) in enumerate(told.items())
        if found
    ]


def is_one_ratio(told: dict[str, list[Span]]) -> bool:
    """Whether no method was measured at two ratios: then there is no curve to draw."""
    return all(len({s.repeated.combination.ratio for s in found}) < 2 for found in told.values())


def by_method(comparison: Comparison) -> dict[str, list[Row]]:
    """The rows of each method, in the order of the grid."""
    found: dict[str, list[Row]] = {}
    for row in comparison.rows:
        found.setdefault(named(comparison, row.combination, row.combination.method), []).append(row)
    return found


def _span(each: Repeated, spread: Spread, text: str, dense: float) -> Span:
    pairs = [row.measured.change[text].paired for row in each.rows if row.measured]
    only = pairs[0] if len(pairs) == 1 else None
    if only is None or only.low is None or only.high is None:
        return Span(each, spread.mean, spread.least, spread.most)
    low, high = (dense * math.exp(min(end, LARGEST_NATS)) for end in (only.low, only.high))
    return Span(each, spread.mean, low, high)


def _left(span: Span) -> float:
    spread = span.repeated.over("parameters_ratio")
    return spread.mean if spread else 0.0


def _point(name: str, span: Span) -> Point:
    ratio = span.repeated.combination.ratio
    title = f"{name}, ratio {ratio:g}, {percent(_left(span))} left: {span.text}"
    return Point(100 * _left(span), span.value, span.low, span.high, title)
