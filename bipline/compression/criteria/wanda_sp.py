"""``wanda-sp``: Wanda's score on whole channels and heads (the baseline of FLAP's code).

channel j:        s_j = mean_i |W[i, j]| * rms(x_j)     of o_proj or down_proj, x its input
attention group:  the sum over its channels

Source: established, from the code of FLAP (arXiv 2312.11983), which has the L2 norm over tokens in
the place of the root mean square: the same ranking. There a pruned block's outputs feed the next
block; here all sums are taken on the dense model. Up to its scale it is the first, residual half of
``llm-bip``. Where a norm lies behind a sublayer (Gemma 2, OLMo 2), W has that norm's gain on its
rows and x is divided by the dense root mean square of what enters it: a reconstruction.
"""

from __future__ import annotations

from bipline.compression.criteria.interface import (
    INPUTS,
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    mean_absolute_columns,
    root_mean_square,
    second_moments,
)
from bipline.compression.criteria.needs import MOMENTS

NEEDS = MOMENTS
OPTIONS = Options
SUMS = frozenset({"tokens", "attention_output_squares", "ffn_activation_squares"})


def reads(options: Options) -> frozenset[str]:
    """What ``score`` reads."""
    return SUMS


def observe(block: Block, tokens: Tokens, options: Options) -> Sums:
    """Sums of squares of what enters o_proj and down_proj."""
    return second_moments(block, tokens)


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Scores from the sums; one product with the absolute weights each."""
    attention, ffn = (
        root_mean_square(sums[f"{name}_squares"], sums["tokens"])
        * mean_absolute_columns(block.output_matrix(sublayer))
        for sublayer, name in INPUTS.items()
    )
    return BlockScores.of_channels(attention, ffn, block.shape)
