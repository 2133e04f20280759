"""Uniform widths with a chosen split between attention and FFN.

With the uniform layout an allocation can only choose how much of the ratio attention takes. Every
allowed number of groups is a candidate; the FFN then loses the fewest channels, or experts, that
reach the ratio.
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
    shape, found = choices.shape, []
    for kept in choices.attention_groups:
        gone = (shape.num_key_value_heads - kept) * shape.group_weights
        units = choices.units_for(max(0.0, problem.ratio * share * shape.block_weights - gone))
        if units is not None:
            found.append(Widths(kept, units))
    if not found:
        largest = choices.most_removed / shape.block_weights / share
        raise InvalidInput(
            f"ratio {problem.ratio:g} of the blocks cannot be reached; the largest that can is "
            f"{largest:.4f}"
        )
    # Where the groups alone remove more than was asked, the others come nearer to it.
    least = min(each.removed_weights(shape) for each in found)
    step = max(shape.group_weights, shape.ffn_unit_weights)
    return [each for each in found if each.removed_weights(shape) - least < step]


def uniform_of_share(problem: Problem, wanted: Sequence[Widths]) -> list[Widths]:
    """Uniform widths whose attention loses a share as near as can be to that of ``wanted``."""
    shape = problem.choices[0].shape
    groups = shape.num_key_value_heads
    share = sum(groups - each.attention_groups for each in wanted) / (groups * len(wanted))
    nearest = min(
        uniform_candidates(problem),
        key=lambda each: abs((groups - each.attention_groups) / groups - share),
    )
    return alike(problem.choices, nearest)
