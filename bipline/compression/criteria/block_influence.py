"""``block-influence``: how much a whole block, or a sublayer, changes what passes through it.

``metric: cosine``            1 - mean over tokens of cos(h_in, h_out)          (default)
``metric: relative-norm``     mean over tokens of ||h_out - h_in||_2 / ||h_in||_2
``metric: relative-norm-l1``  the same with L1 norms
``of: blocks``                h_in enters the block, h_out leaves it             (default)
``of: sublayers``             attention and FFN apart, each with its own residual

The score is for depth: whole blocks go, or whole sublayers, the least influential first, by the
allocation ``depth``. Every group of a unit bears the unit's score.

Source: block influence is ShortGPT's (arXiv 2403.03853); norms, and sublayers apart, are read in
the code of "A deeper look at depth pruning" (arXiv 2407.16286). Established, from that code. Its
Shapley form runs the whole model without each unit and is ``block-shapley`` here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    DepthOptions,
    Sums,
    Tokens,
    tiles,
)
from bipline.compression.criteria.needs import MOMENTS

NEEDS = MOMENTS
SUMS = {
    "cosine": "influence_cosines",
    "relative-norm": "influence_relative_l2",
    "relative-norm-l1": "influence_relative_l1",
}


class InfluenceOptions(DepthOptions):
    """How a change is measured."""

    metric: Literal["cosine", "relative-norm", "relative-norm-l1"] = "cosine"


OPTIONS = InfluenceOptions
EXPERTS = True


def reads(options: InfluenceOptions) -> frozenset[str]:
    """Sums over tokens of this metric."""
    return frozenset({"tokens", SUMS[options.metric]})


def observe(block: Block, tokens: Tokens, options: InfluenceOptions) -> Sums:
    """Sums over tokens of every metric, ``[3]``: of the block, its attention, its FFN."""
    before, middle, update = tokens["hidden"], block.between(tokens), tokens["ffn_output"]
    total = torch.zeros(len(SUMS), 3, dtype=torch.float64, device=before.device)
    for start, between, change in zip(tiles(before), tiles(middle), tiles(update), strict=True):
        end = between + change
        pairs = [(start, end), (start, between), (between, end)]
        total += torch.stack([_metrics(one, other) for one, other in pairs], 1)
    summed = dict(zip(SUMS.values(), total, strict=True))
    return {"tokens": torch.tensor(float(len(before)), dtype=torch.float64), **summed}


def score(sums: Sums, block: Block, options: InfluenceOptions) -> BlockScores:
    """The unit's influence, borne by each of its groups and channels."""
    mean = sums[SUMS[options.metric]] / sums["tokens"]
    influence = 1 - mean if options.metric == "cosine" else mean
    whole, attention, ffn = influence
    if options.of == "blocks":
        return BlockScores.of_units(whole, whole, block.shape)
    return BlockScores.of_units(attention, ffn, block.shape)


def _metrics(before: Tensor, after: Tensor) -> Tensor:
    """Sums over tokens of cosine, relative L2 and relative L1 change, in the order of SUMS."""
    change = after - before
    return torch.stack(
        [
            cosine_similarity(before, after, dim=-1).double().sum(),
            (change.norm(dim=-1) / before.norm(dim=-1)).double().sum(),
            (change.norm(1, dim=-1) / before.norm(1, dim=-1)).double().sum(),
        ]
    )
