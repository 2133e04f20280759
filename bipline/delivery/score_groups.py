"""Scores of a plan's units by block, and which of them stay: what the report's pictures show."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from bipline.compression.criteria.interface import BlockScores
from bipline.compression.statistics import Scores
from bipline.delivery.pictures import Group
from bipline.values.plan import BlockPlan, PruningPlan


def attention_groups(plan: PruningPlan, scores: Scores) -> list[Group]:
    """Those of attention groups."""
    pairs = zip(scores.blocks, plan.blocks, strict=True)
    return [_group(scored.attention_groups, block.attention_groups) for scored, block in pairs]


def ffn_units(plan: PruningPlan, scores: Scores) -> list[Group]:
    """Those of FFN channels, of experts, or of the channels of all experts of a block.

    None of an FFN without experts in a model that has some.
    """
    of_block = _inside if plan.within_experts else _units
    return [
        of_block(scored, block) if index in plan.counted_blocks else Group((), frozenset())
        for index, (scored, block) in enumerate(zip(scores.blocks, plan.blocks, strict=True))
    ]


def _units(scored: BlockScores, block: BlockPlan) -> Group:
    return _group(scored.ffn_units, block.ffn_units)


def _inside(scored: BlockScores, block: BlockPlan) -> Group:
    """One expert after the other; none where the scores are older than these."""
    if scored.expert_channels is None:
        return Group((), frozenset())
    width = scored.expert_channels.shape[1]
    lists = zip(block.experts, block.expert_channels, strict=True)
    kept = (expert * width + each for expert, channels in lists for each in channels)
    return _group(scored.expert_channels.flatten(), kept)


def _group(scores: Tensor, kept: Iterable[int]) -> Group:
    return Group(tuple(scores.tolist()), frozenset(kept))
