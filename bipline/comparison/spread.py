"""Spread: the repetitions of a combination, which differ in their seed, and how far they part."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from bipline.values.combination import Combination
from bipline.values.comparison import Comparison, Measured, Row


class Spread(BaseModel):
    """Mean, least and most of a figure over seeds; the sample standard deviation from two on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    least: float
    most: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(
            mean=statistics.fmean(values),
            least=min(values),
            most=max(values),
            deviation=deviation,
        )


@dataclass(frozen=True)
class Repeated:
    """The rows of one combination, a row a seed, in the order of the grid."""

    rows: tuple[Row, ...]

    @property
    def combination(self) -> Combination:
        """The combination; its seed is the first one's."""
        return self.rows[0].combination

    @property
    def measured(self) -> list[tuple[Row, Measured]]:
        """The rows that have figures, with them."""
        return [(row, row.measured) for row in self.rows if row.measured]

    @property
    def refusals(self) -> list[str]:
        """The reasons of the rows that have none, each once."""
        return list(dict.fromkeys(row.refusal for row in self.rows if row.refusal))

    @property
    def compensation(self) -> str:
        """What was to be corrected, and by what the matrices of the first row were."""
        tried = self.combination.compensation.label
        first = self.measured[0][1].compensated if self.measured else None
        return f"{tried} ({first.told})" if first else tried

    def over(self, figure: Callable[[Row, Measured], float]) -> Spread | None:
        """The spread of a figure over the measured rows; None without one."""
        values = [figure(row, measured) for row, measured in self.measured]
        return Spread.of(values) if values else None


def repeated(rows: Iterable[Row]) -> list[Repeated]:
    """Rows that differ in the seed alone, together; in the order they first come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.combination.but_seed, []).append(row)
    return [Repeated(tuple(held)) for held in found.values()]


def ranked(comparison: Comparison, model: str) -> list[Repeated]:
    """A model's combinations as tables show them: by ratio, and there the best text first.

    Those that were refused come last.
    """
    found = repeated(row for row in comparison.rows if row.combination.model == model)

    def place(each: Repeated) -> tuple[bool, float, float]:
        first = each.over(lambda _, measured: next(iter(measured.perplexity.values())).value)
        return first is None, each.combination.ratio, first.mean if first else 0.0

    return sorted(found, key=place)
