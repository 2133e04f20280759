"""``standardized``: FLAP's z-scores over all blocks (arXiv 2312.11983, its AL-AM structure).

z of a channel:  (s - mean) / standard deviation, inside its block and kind (o_proj's inputs apart
                 from FFN channels)
z of a group:    the mean of its channels' z; of the group's own score where the criterion scores
                 whole groups only
z of query heads: where these go, one of each group at a time: the mean over groups of the means of
                 the lowest one's channels, then of the next one's
Groups and channels of all blocks go in the order of z, lowest first, until the weights that go
reach the ratio; a group counts for its weights, a channel for its own (FLAP's 512/3 to 1 on
LLaMA-7B). With the uniform layout the order decides how much of the ratio attention takes, and
every block takes the same.

Source: the code of FLAP. Established; the widths that ``ffn_multiple`` and ``divisible_by`` allow
are taken as steps, each priced by the mean z of what it removes.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from bipline.compression.allocation.attention_units import AttentionOptions
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.split import uniform_of_share
from bipline.compression.allocation.widths import Widths
from bipline.compression.criteria.interface import BlockScores, query_head_sums
from bipline.compression.options import BaseOptions
from bipline.model.shapes import ModelShape

OPTIONS = AttentionOptions
WINDOWS = False
NOT_UNIFORM = ""
EXPERTS = True


def widths(problem: Problem, options: BaseOptions) -> list[Widths]:
    """Widths by one threshold over all blocks, or the uniform widths nearest to its split."""
    found = _by_threshold(problem)
    return found if problem.layout == "per-layer" else uniform_of_share(problem, found)


def _by_threshold(problem: Problem) -> list[Widths]:
    ladders = []
    for block in problem.open_blocks:
        choices, scores = problem.choices[block], problem.scores.blocks[block]
        heads, (groups, units) = choices.attention, z_scores(scores)
        if choices.queries_per_group:
            groups = _by_rank(scores, choices.shape)
        ladders.append(_Ladder(block, groups, heads.counts, heads.unit_weights))
        ladders.append(_Ladder(block, units, choices.ffn_units, choices.shape.ffn_unit_weights))
    heap = [(ladder.price, number) for number, ladder in enumerate(ladders) if ladder.place]
    heapq.heapify(heap)
    removed = 0.0
    while heap and removed < problem.target:
        _, number = heapq.heappop(heap)
        removed += ladders[number].step_down()
        if ladders[number].place:
            heapq.heappush(heap, (ladders[number].price, number))
    kept = [[each.attention.counts[-1], each.ffn_units[-1]] for each in problem.choices]
    for number, ladder in enumerate(ladders):
        kept[ladder.block][number % 2] = ladder.allowed[ladder.place]
    return [each.widths(*pair) for each, pair in zip(problem.choices, kept, strict=True)]


def z_scores(scores: BlockScores) -> tuple[Tensor, Tensor]:
    """z of a block's attention groups and of its FFN channels or experts, in float64."""
    channels = scores.attention_channels
    if channels is None:
        groups = _standardized(scores.attention_groups)
    else:
        groups = _standardized(channels).view(len(scores.attention_groups), -1).mean(1)
    return groups, _standardized(scores.ffn_units)


def _by_rank(scores: BlockScores, shape: ModelShape) -> Tensor:
    """Mean z over groups of their lowest query head, of the next lowest, and so on."""
    channels = scores.attention_channels
    assert channels is not None  # noqa: S101
    heads = query_head_sums(_standardized(channels), shape) / shape.head_dim
    return heads.sort(1).values.mean(0)


def _standardized(scores: Tensor) -> Tensor:
    scores = scores.double()
    spread = scores.std(unbiased=False)
    # Equal scores say nothing of each other; all of them stand at the mean.
    return (scores - scores.mean()) / spread if spread > 0 else torch.zeros_like(scores)


class _Ladder:
    """One kind of one block: counts to step down, each step priced by the mean z of what goes."""

    def __init__(self, block: int, z: Tensor, allowed: tuple[int, ...], weight: int) -> None:
        self.block, self.allowed, self.place = block, allowed, len(allowed) - 1
        self._weight, self._size = weight, len(z)
        self._sums = torch.cat([z.new_zeros(1), z.sort().values.cumsum(0)]).tolist()

    @property
    def price(self) -> float:
        """Mean z of the groups or channels that the next step removes."""
        count, after = self.allowed[self.place], self.allowed[self.place - 1]
        gone, going = self._size - count, self._size - after
        return float((self._sums[going] - self._sums[gone]) / (going - gone))

    def step_down(self) -> float:
        """Take the next smaller count; the weights that go with it."""
        self.place -= 1
        return (self.allowed[self.place + 1] - self.allowed[self.place]) * float(self._weight)
