"""From what each block should lose to widths that meet the budget to within one step.

Allocations that give a share per block end here: attention groups are rounded to the nearest
count, the FFN takes what is left of the block's share, and steps that rounding left over go to the
blocks that are furthest from their share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths

HALVINGS = 200
# Rounding of the ratio itself, in weights.
SLACK = 1e-6


def scaled_to_budget(weights: Sequence[float], problem: Problem) -> list[float]:
    """Weights that each block should lose: in proportion to ``weights``, capped by its most.

    What a capped block cannot lose is spread over the others in the same proportion. ``weights``
    must be positive; they add up to the problem's target afterwards.
    """
    most = [float(choices.most_removed) for choices in problem.choices]

    def capped(factor: float) -> list[float]:
        return [min(cap, factor * weight) for cap, weight in zip(most, weights, strict=True)]

    low, high = 0.0, problem.target / min(weights) + 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if sum(capped(middle)) < problem.target:
            low = middle
        else:
            high = middle
    return capped(high)


def filled(
    problem: Problem, losses: Sequence[float], groups: Sequence[int] | None = None
) -> list[Widths]:
    """Widths by which each block loses about ``losses`` weights, and all together the target.

    ``groups`` fixes how many attention groups stay; otherwise each block cuts the same share of
    its groups as of its weights. The budget is met from above, by less than one step.
    """
    kept = list(groups) if groups is not None else _proportional(problem, losses)
    counts = _Counts(problem, losses, kept)
    while counts.missing > SLACK and counts.remove_one():
        continue
    while counts.restore_one():
        continue
    return counts.widths()


def _proportional(problem: Problem, losses: Sequence[float]) -> list[int]:
    kept = []
    for choices, loss in zip(problem.choices, losses, strict=True):
        have = choices.shape.num_key_value_heads
        cut = math.floor(loss / choices.shape.block_weights * have + 0.5)
        kept.append(choices.attention.nearest(have - cut))
    return kept


@dataclass
class _Part:
    """The attention groups, or the FFN channels, of one block: which of the counts is kept."""

    block: int
    allowed: tuple[int, ...]
    weight: int
    place: int

    @classmethod
    def of(cls, block: int, allowed: tuple[int, ...], weight: int, count: int) -> _Part:
        """A part that keeps ``count``, one of the allowed counts."""
        return cls(block, allowed, weight, allowed.index(count))

    @property
    def removed(self) -> int:
        """Weights that are gone."""
        return (self.allowed[-1] - self.allowed[self.place]) * self.weight

    @property
    def next_cost(self) -> float:
        """Weights that come back with the next larger count; infinite where there is none."""
        if self.place + 1 == len(self.allowed):
            return math.inf
        return (self.allowed[self.place + 1] - self.allowed[self.place]) * self.weight


class _Counts:
    """Counts per block that are corrected step by step, FFN steps before attention steps."""

    def __init__(self, problem: Problem, losses: Sequence[float], groups: Sequence[int]) -> None:
        self._losses, self._target = losses, problem.target
        self._attention, self._ffn = [], []
        for block, (choices, kept) in enumerate(zip(problem.choices, groups, strict=True)):
            shape = choices.shape
            attention = _Part.of(block, choices.attention_groups, shape.group_weights, kept)
            units = choices.units_within(losses[block] - attention.removed)
            ffn = _Part.of(block, choices.ffn_units, shape.ffn_unit_weights, units)
            self._attention.append(attention)
            self._ffn.append(ffn)

    @property
    def missing(self) -> float:
        """Weights that must still go; negative where more went."""
        return self._target - sum(part.removed for part in (*self._attention, *self._ffn))

    def widths(self) -> list[Widths]:
        """The counts as they are."""
        pairs = zip(self._attention, self._ffn, strict=True)
        return [Widths(a.allowed[a.place], f.allowed[f.place]) for a, f in pairs]

    def remove_one(self) -> bool:
        """One step more from the block that is furthest below its loss; false if none is left."""
        for parts in (self._ffn, self._attention):
            able = [part for part in parts if part.place > 0]
            if able:
                min(able, key=lambda part: self._excess(part.block)).place -= 1
                return True
        return False

    def restore_one(self) -> bool:
        """Give a step back where the budget allows it, to the block furthest above its loss."""
        room = SLACK - self.missing
        for parts in (self._ffn, self._attention):
            able = [part for part in parts if part.next_cost <= room]
            if able:
                max(able, key=lambda part: self._excess(part.block)).place += 1
                return True
        return False

    def _excess(self, block: int) -> float:
        gone = self._attention[block].removed + self._ffn[block].removed
        return gone - self._losses[block]
