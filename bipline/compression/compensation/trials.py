"""Trials of one matrix: versions by their errors on held-out windows; the best is kept.

Apart from the fits, so that a compensation of its own file can be told to measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from bipline.compression.compensation.candidates import Candidate
from bipline.compression.compensation.options import CompensationOptions
from bipline.values.compensation import Compensation

# Versions that are measured in one pass over the held-out windows: their inputs are computed anew
# for every pass, and all of them are in memory.
VERSIONS_TOGETHER = 4

Errors = Callable[[Sequence[Candidate]], list[float]]


class Trials:
    """Measures versions of a matrix; only the best of all is kept.

    ``by_compensation`` has the best error of each. Not ``guarded``, the best is one of those that
    are measured, even where the plain one leaves less.
    """

    def __init__(self, errors: Errors, plain: Candidate, guarded: bool = True) -> None:
        self._errors = errors
        [error] = errors([plain])
        self.chosen, self.least = plain, error if guarded else math.inf
        self.by_compensation: dict[str, float] = {plain.compensation: error}
        self._betas: dict[str, float | None] = {}

    def measure(self, versions: Iterable[Candidate]) -> None:
        """Measure versions, a few together; of equal ones the first stays."""
        coming = iter(versions)
        while few := list(islice(coming, VERSIONS_TOGETHER)):
            for version, error in zip(few, self._errors(few), strict=True):
                if error < self.by_compensation.get(version.compensation, math.inf):
                    self.by_compensation[version.compensation] = error
                    self._betas[version.compensation] = version.beta
                if error < self.least:
                    self.chosen, self.least = version, error
            few.clear()
            del version

    def betas(
        self, compensation: Compensation, options: CompensationOptions
    ) -> tuple[float | None, ...]:
        """The shares of the drift still to be tried: the best one, once all were measured."""
        return (self._betas[compensation],) if compensation in self._betas else options.betas
