"""Scores of a plan's units by block, and which of them stay: what the report's pictures show."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from bipline.compression.compensation.kept_heads import kept_of
from bipline.compression.criteria.interface import BlockScores, query_head_sums
from bipline.compression.statistics import Scores
from bipline.delivery.contents import PackageContents
from bipline.delivery.pictures import Group
from bipline.values.plan import BlockPlan, PruningPlan


def attention_units(contents: PackageContents, scores: Scores) -> list[Group]:
    """Those of attention groups, or of query heads where these go."""
    shape, found = contents.dense_shape, []
    for scored, block in zip(scores.blocks, contents.plan.blocks, strict=True):
        values = scored.attention_groups
        if block.query_heads and scored.attention_channels is not None:
            values = query_head_sums(scored.attention_channels, shape).flatten()
        found.append(_group(values, kept_of(block, shape.queries_per_group)))
    return found


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
