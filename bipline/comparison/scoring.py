"""Which criteria share a pass: those that read the most go first, others are scored from them.

What comes out is what a pass of its own would have given.
"""

from __future__ import annotations

from collections.abc import Iterable

from bipline.compression.criteria import load_criterion, needs_of, options_of
from bipline.values.combination import Combination


def families(rows: Iterable[Combination]) -> list[tuple[Combination, ...]]:
    """A row of each criterion: those that may share sums together, the broadest first.

    ``rows`` are of one model, calibration and seed; each search is a family of its own.
    """
    by_criterion = {row.criterion.label: row for row in rows}
    found: dict[str, list[Combination]] = {}
    for row in sorted(by_criterion.values(), key=lambda one: -_breadth(one)):
        needs = needs_of(row.criterion.name)
        found.setdefault(needs.family or row.criterion.label, []).append(row)
    return [tuple(family) for family in found.values()]


def _breadth(row: Combination) -> int:
    """How many sums a criterion reads: the more, the more others may find in them."""
    name = row.criterion.name
    if not needs_of(name).sums:
        return 0
    return len(load_criterion(name).reads(options_of(name, row.seed, row.criterion.options)))
