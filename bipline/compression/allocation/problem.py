"""What an allocation is asked: how many weights must go, and what every block may lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.widths import Choices, Widths
from bipline.compression.criteria.interface import BlockScores, query_head_sums
from bipline.compression.statistics import Scores
from bipline.compression.windows import Windows
from bipline.model.checkpoint import Checkpoint
from bipline.model.shapes import ModelShape
from bipline.values.plan import BlockPlan, Layout


@dataclass(frozen=True)
class Problem:
    """One allocation: ``ratio`` of the blocks' linear weights, out of ``choices`` per block."""

    checkpoint: Checkpoint
    scores: Scores
    layout: Layout
    ratio: float
    choices: tuple[Choices, ...]
    measuring: Windows | None = None

    @property
    def target(self) -> float:
        """Linear weights that must go, over all blocks."""
        return self.ratio * sum(choices.shape.block_weights for choices in self.choices)

    @cached_property
    def open_blocks(self) -> list[int]:
        """Blocks that may lose something."""
        return [index for index, choices in enumerate(self.choices) if choices.most_removed]

    @property
    def windows(self) -> Windows:
        """The calibration windows. Raises InvalidInput where there are none."""
        if self.measuring is None:
            raise InvalidInput(
                "this allocation measures on calibration windows; give --calibration"
            )
        return self.measuring

    def plans(self, widths: Sequence[Widths]) -> tuple[BlockPlan, ...]:
        """What every block keeps by these widths and the scores."""
        shapes = (choices.shape for choices in self.choices)
        return tuple(map(block_plan, shapes, self.scores.blocks, widths))


def highest(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` highest scores, ascending; of equal scores the first stay."""
    order = torch.sort(scores.double(), descending=True, stable=True).indices[:count]
    return tuple(int(index) for index in order.sort().values)


def block_plan(shape: ModelShape, scores: BlockScores, kept: Widths) -> BlockPlan:
    """The highest scores stay, as many of each kind as the widths say; ``shape`` is the block's.

    Query heads are ranked within their group, channels of experts within their expert.
    Raises InvalidInput where query heads have no scores.
    """
    groups = highest(scores.attention_groups, kept.attention_groups)
    units = highest(scores.ffn_units, kept.ffn_units)
    heads: tuple[tuple[int, ...], ...] = ()
    if kept.queries_per_group is not None:
        if scores.attention_channels is None:
            raise InvalidInput("the scores are of attention groups, and query heads are to go")
        by_group = query_head_sums(scores.attention_channels, shape)
        heads = tuple(highest(by_group[group], kept.queries_per_group) for group in groups)
    plan = BlockPlan.keeping(groups, units, scores.experts is not None, heads)
    if (count := kept.channels_per_expert) is None or scores.expert_channels is None:
        return plan
    inside: dict[str, tuple[Any, ...]] = {
        "expert_channels": tuple(highest(scores.expert_channels[expert], count) for expert in units)
    }
    if (shared := scores.shared_channels) is not None:
        # The class gives experts and what all tokens share one width.
        width = scores.expert_channels.shape[1]
        inside["shared_channels"] = highest(shared, len(shared) // width * count)
    return plan.model_copy(update=inside)
