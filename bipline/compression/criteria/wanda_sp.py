"""``wanda-sp``: Wanda's score on whole channels and heads (the baseline of FLAP's code).

channel j:        s_j = mean_i |W[i, j]| * rms(x_j)     of o_proj or down_proj, x its input
attention group:  the sum over its channels
expert:           the sum over its channels, of its own down_proj; x is the input times the
                  router's weight, and zero where the router sends a token elsewhere
channel of an expert:  mean_i |W[i, j]| * rms(x_j) over the tokens that it sees, compared within
                  its expert; rms(x_j) = 1 in one that sees none

Source: established, from the code of FLAP (arXiv 2312.11983), which has the L2 norm over tokens in
the place of the root mean square: the same ranking. There a pruned block's outputs feed the next
block; here all sums are taken on the dense model. Up to its scale it is the first, residual half of
``llm-bip``. Where a norm lies behind a sublayer (Gemma 2, OLMo 2), W has that norm's gain on its
rows and x is divided by the dense root mean square of what enters it: a
reconstruction, as are the scores of experts.
"""

from __future__ import annotations

from torch import Tensor

from bipline.compression.criteria.inside_experts import expert_columns, with_channels
from bipline.compression.criteria.interface import (
    INPUTS,
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    mean_absolute_columns,
    root_mean_square,
)
from bipline.compression.criteria.needs import MOMENTS
from bipline.compression.criteria.second_moments import second_moments
from bipline.model.builds import Sublayer

NEEDS = MOMENTS
OPTIONS = Options
EXPERTS = True
QUERY_HEADS = True
SUMS = frozenset({"tokens", "attention_output_squares", "ffn_activation_squares"})


def reads(options: Options) -> frozenset[str]:
    """What ``score`` reads."""
    return SUMS


def observe(block: Block, tokens: Tokens, options: Options) -> Sums:
    """Sums of squares of what enters o_proj and down_proj."""
    return second_moments(block, tokens)


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Scores from the sums; one product with the absolute weights each."""
    attention = _channels(sums, block, "attention")
    if not block.shape.num_experts:
        return BlockScores.of_channels(attention, _channels(sums, block, "ffn"), block.shape)
    scores = BlockScores.of_channels(attention, _experts(sums, block), block.shape)
    return with_channels(scores, block, mean_absolute_columns, sums)


def _channels(sums: Sums, block: Block, sublayer: Sublayer) -> Tensor:
    rms = root_mean_square(sums[f"{INPUTS[sublayer]}_squares"], sums["tokens"])
    return rms * mean_absolute_columns(block.output_matrix(sublayer))


def _experts(sums: Sums, block: Block) -> Tensor:
    """``[experts]``, each the sum over its channels."""
    means = expert_columns(block, mean_absolute_columns)
    return (root_mean_square(sums["ffn_activation_squares"], sums["tokens"]) * means).sum(1)
