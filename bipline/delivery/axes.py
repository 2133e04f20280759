"""Axes of the pictures: from where to where, linear or logarithmic, and the round values beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Positive scores that span more than this factor are drawn on a logarithmic axis; perplexities,
# whose axis need not begin at zero, from a smaller one on.
LOG_FACTOR, AROUND_FACTOR = 20.0, 4.0
# Of what an axis spans, or of its logarithm, as much is left free at both its ends.
MARGIN = 0.06
LEAST, MOST = 1e-307, 1e307


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``; zeros lie on the floor of a logarithmic one."""

    low: float
    high: float
    logarithmic: bool

    @property
    def linear(self) -> Axis:
        """The same ends, evenly divided."""
        return Axis(self.low, self.high, False)

    def share(self, value: float) -> float:
        """How high a value lies, from 0 at the floor to 1."""
        if self.logarithmic:
            if value <= self.low:
                return 0.0
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 8) -> list[float]:
        """Values to write beside the axis: round ones, and about ``most`` of them."""
        if not self.logarithmic:
            return _linear_ticks(self.low, self.high, min(most, 5))
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        decades = [
            10.0**e for e in range(first, last + 1, max(1, math.ceil((last - first) / most)))
        ]
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = [f * decade for decade in decades for f in factors]
            inside = [value for value in values if self.low <= value <= self.high * 1.0001]
            if last - first <= 3 and 2 <= len(inside) <= most:
                return inside
        # Less than two: the ends are close to each other, and a linear step finds round values.
        return inside if len(inside) > 1 else _linear_ticks(self.low, self.high, min(most, 5))


def axis_over(values: Sequence[float]) -> Axis:
    """The axis that shows these scores: logarithmic where they span more than a factor of 20."""
    least, high = min(values), max(*values, 0.0)
    if least < -LEAST:
        return Axis(least, max(high, least * 0.99), False)
    if high < LEAST:
        return Axis(0.0, 1.0, False)
    low = max(LEAST, min(value for value in values if value > 0))
    if high / low > LOG_FACTOR:
        return Axis(low / 1.15, high * 1.15, True)
    return Axis(0.0, high * 1.05, False)


def axis_around(values: Sequence[float]) -> Axis:
    """The axis that shows where marks lie: it begins near the least and ends near the highest.

    Logarithmic where positive values span more than a factor of 4.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > AROUND_FACTOR:
        reach = math.exp(MARGIN * math.log(high / low))
        return Axis(max(low / reach, LEAST), min(high * reach, MOST), True)
    span = next(each for each in (high - low, abs(high), 1.0) if each > LEAST)
    reach = MARGIN * span
    return Axis(low - reach, high + reach, False)


def number_text(value: float) -> str:
    """A value beside an axis."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return f"{value:,.7g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
