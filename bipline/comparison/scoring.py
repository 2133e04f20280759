"""Which criteria share a pass: those that read the most go first, others are scored from them.

What comes out is what a pass of its own would have given.
"""

from __future__ import annotations

from collections.abc import Iterable

from bipline.comparison.rows import score_row
from bipline.compression.criteria import load_criterion, needs_of, options_of
from bipline.stages.stage import Context
from bipline.storage.store import Handle
from bipline.values.combination import Combination
from bipline.values.resolution import Resolution

Family = tuple[Combination, ...]


def families(rows: Iterable[Combination]) -> list[Family]:
    """A row of each criterion: those that may share sums together, the broadest first.

    Rows share where they have model, calibration and seed in common; each search is a family of
    its own.
    """
    by_criterion = {row.scoring: row for row in rows}
    found: dict[tuple[str, int, str], list[Combination]] = {}
    for row in sorted(by_criterion.values(), key=lambda one: -_breadth(one)):
        needs = needs_of(row.criterion.name)
        shared = row.calibration, row.seed, needs.family or row.criterion.label
        found.setdefault(shared, []).append(row)
    return [tuple(family) for family in found.values()]


def score_family(
    context: Context, given: Resolution, calibration: Handle, family: Family
) -> list[Handle]:
    """A handle for each of a family: its statistics, or why there are none.

    A member whose needs the sums of another meet runs no pass of its own.
    """
    found: list[Handle] = []
    for member in family:
        found.append(score_row(context, given, calibration, member, found))
    return found


def _breadth(row: Combination) -> int:
    """How many sums a criterion reads: the more, the more others may find in them."""
    name = row.criterion.name
    if not needs_of(name).sums:
        return 0
    return len(load_criterion(name).reads(options_of(name, row.seed, row.criterion.options)))
