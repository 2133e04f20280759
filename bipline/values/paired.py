"""A paired difference: two models on the same windows or the same rows, one taken from the other.

What two models find hard is mostly the same, so the differences spread far less than the values:
an interval of them tells a small change that two standard errors side by side would hide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from pydantic import BaseModel

CONFIDENCE = 0.95
# Above this many nats no perplexity is a number any more.
LARGEST_NATS = 700.0


class PairedDifference(BaseModel, frozen=True, extra="forbid"):
    """The mean of ``after - before`` over ``n`` pairs, its standard error and 95 % interval.

    Error and interval are None where one pair alone tells nothing of a spread. ``p_value`` is the
    exact McNemar test's, for right and wrong answers only.
    """

    difference: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    p_value: float | None = None

    @property
    def is_told(self) -> bool:
        """Whether the interval leaves zero out: a difference inside its interval is none."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def paired_difference(before: Sequence[float], after: Sequence[float]) -> PairedDifference:
    """The mean difference of paired values, with Student's interval over the pairs.

    Raises ValueError for sequences that do not pair, or are empty.
    """
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if not differences:
        raise ValueError("no pairs")
    count, mean = len(differences), fmean(differences)
    if count == 1:
        return PairedDifference(difference=mean, n=1)
    error = stdev(differences) / math.sqrt(count)
    reach = student_quantile(0.5 + CONFIDENCE / 2, count - 1) * error
    low, high = mean - reach, mean + reach
    return PairedDifference(difference=mean, stderr=error, low=low, high=high, n=count)


def paired_answers(before: Sequence[bool], after: Sequence[bool]) -> PairedDifference:
    """The difference of two accuracies on the same rows, with the exact McNemar test beside it.

    Raises ValueError as :func:`paired_difference`.
    """
    told = paired_difference(list(map(float, before)), list(map(float, after)))
    pairs = list(zip(before, after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    return told.model_copy(update={"p_value": mcnemar(lost, gained)})


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided exact p of McNemar's test: as many rows lost as gained, by a fair coin."""
    discordant, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**discordant)


def student_quantile(share: float, degrees: int) -> float:
    """Student's t below which ``share`` of it lies, for ``degrees`` of freedom of 1 or more.

    One and two degrees are closed; above them the expansion of Cornish and Fisher (Abramowitz and
    Stegun 26.7.5) is within 1 % of the true quantile at 0.975.
    """
    if degrees == 1:
        return math.tan(math.pi * (share - 0.5))
    if degrees == 2:
        return (2 * share - 1) * math.sqrt(2 / (4 * share * (1 - share)))
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))
