"""``uniform``: every block loses the same share.

uniform layout:    groups cut = round(ratio * groups), at most groups - 1; then the FFN loses the
                   fewest multiples of ``ffn_multiple`` that reach the ratio
by query heads:    cut of each group = round(ratio * (queries + 1)), at most queries - 1, so that
                   attention loses a share of its weights as near to the ratio as heads come (the
                   KV head, as large as a query head, stays); then the FFN as before
with experts:      the fewest whole experts that reach the ratio, or of every expert the fewest
                   multiples of channels (of_experts); attention loses groups where these alone
                   cannot reach it, because as many experts stay as a token passes through;
                   where some blocks have no experts these stay whole, and all attention
                   channels of every expert stay in multiples of 8 at least, as transformers'
                   grouped products of experts take no others
per-layer layout:  the same share from every block that may lose something; blocks kept whole by
                   ``keep_first`` and ``keep_last`` raise the share of the others

With one KV head (MQA) attention stays and the FFN takes all, unless query heads go
(``attention: query-heads``, the uniform layout alone): in every group those of the highest scores
stay, as many in each, and so do all KV heads. With the uniform layout the result is a plain
transformers checkpoint.

Source: the same quota for heads and for channels is in LLM-Pruner's code (arXiv 2305.11627). That
the FFN makes up for the rounding of heads is this project's choice, as is that experts, which hold
nearly all of a block's weights, go first; LLM-BIP's own allocation is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.attention_units import AttentionOptions
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.shares import filled, scaled_to_budget
from bipline.compression.allocation.widths import Choices, Widths, alike, open_choices
from bipline.compression.options import BaseOptions

OPTIONS = AttentionOptions
WINDOWS = False
# Why an allocation cannot choose uniform widths; empty where it can.
NOT_UNIFORM = ""
# Whether it chooses how many whole experts stay.
EXPERTS = True
EXPERT_CHANNELS = True


def widths(problem: Problem, options: BaseOptions) -> list[Widths]:
    """The same widths, or the same share, for every block that may lose something."""
    if problem.layout == "uniform":
        return alike(problem.choices, uniform_of(problem.choices, problem.ratio))
    shares = [float(choices.shape.block_weights) for choices in problem.choices]
    return filled(problem, scaled_to_budget(shares, problem))


def uniform_of(choices: Sequence[Choices], ratio: float) -> Widths:
    """What each block that may lose something keeps, so that ``ratio`` of all blocks' weights goes.

    Raises InvalidInput as :func:`uniform_widths`.
    """
    each, share = open_choices(choices)
    return uniform_widths(each, ratio * share)


def uniform_widths(choices: Choices, ratio: float) -> Widths:
    """The widths that reach ``ratio`` of a block's linear weights.

    Raises InvalidInput when the ratio cannot be reached, naming the largest one that can.
    """
    found = _widths(choices, ratio)
    if found is None:
        raise InvalidInput(
            f"ratio {ratio:g} of the blocks cannot be reached with uniform widths; the largest "
            f"that can is {math.floor(largest_ratio(choices) * 1e4) / 1e4:g}"
        )
    return found


def largest_ratio(choices: Choices) -> float:
    """The largest ratio that :func:`uniform_widths` reaches."""
    shape = choices.shape
    if shape.num_experts:
        return choices.most_removed / shape.block_weights
    attention = choices.attention
    held, worth = attention.held, attention.units_worth
    best = 0.0
    for cut in range(held):
        most = choices.widths(attention.nearest(held - cut), choices.ffn_units[0])
        capacity = most.removed_weights(shape) / shape.block_weights
        # Rounding cuts this many units only for ratios between these two.
        lowest = (cut - 0.5) / worth
        highest = math.nextafter((cut + 0.5) / worth, 0) if cut < held - 1 else 1.0
        if capacity >= lowest:
            best = max(best, min(capacity, highest))
    return best


def _widths(choices: Choices, ratio: float) -> Widths | None:
    shape = choices.shape
    if shape.num_experts:
        return _experts_first(choices, ratio * shape.block_weights)
    attention = choices.attention
    held = attention.held
    cut = min(math.floor(ratio * attention.units_worth + 0.5), held - 1)
    kept = attention.nearest(held - cut)
    missing = ratio * shape.block_weights - attention.removed(kept)
    channels = choices.units_for(max(0.0, missing))
    return None if channels is None else choices.widths(kept, channels)


def _experts_first(choices: Choices, target: float) -> Widths | None:
    """The most units of attention with which experts can make up for the rest of the target."""
    attention = choices.attention
    for kept in reversed(attention.counts):
        missing = max(0.0, target - attention.removed(kept))
        if (experts := choices.units_for(missing)) is not None:
            return choices.widths(kept, experts)
    return None
