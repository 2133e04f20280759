"""Uniform widths with a chosen split between attention and FFN.

With the uniform layout an allocation can only choose how much of the ratio attention takes. Every
allowed number of groups, or of query heads in each, is a candidate; the FFN then loses the fewest
channels, or experts, that reach the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths, alike, open_choices


def uniform_candidates(problem: Problem) -> list[Widths]:
    """All uniform widths that reach the ratio with the fewest channels cut.

    Raises InvalidInput when there are none, naming the largest ratio there is.
    """
    choices, share = open_choices(problem.choices)
    shape, attention, found = choices.shape, choices.attention, []
    for kept in attention.counts:
        missing = problem.ratio * share * shape.block_weights - attention.removed(kept)
        units = choices.units_for(max(0.0, missing))
        if units is not None:
            found.append(choices.widths(kept, units))
    if not found:
        largest = choices.most_removed / shape.block_weights / share
        raise InvalidInput(
            f"ratio {problem.ratio:g} of the blocks cannot be reached; the largest that can is "
            f"{largest:.4f}"
        )
    # Where the groups alone remove more than was asked, the others come nearer to it.
    least = min(each.removed_weights(shape) for each in found)
    step = max(attention.unit_weights, shape.ffn_unit_weights)
    return [each for each in found if each.removed_weights(shape) - least < step]


def uniform_of_share(problem: Problem, wanted: Sequence[Widths]) -> list[Widths]:
    """Uniform widths whose attention loses a share as near as can be to that of ``wanted``."""
    choices = problem.choices[0]
    units = choices.attention.held
    share = sum(units - choices.attention_of(each) for each in wanted) / (units * len(wanted))
    nearest = min(
        uniform_candidates(problem),
        key=lambda each: abs((units - choices.attention_of(each)) / units - share),
    )
    return alike(problem.choices, nearest)
