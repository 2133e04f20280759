"""``flap``: FLAP's fluctuation metrics on whole channels and heads (arXiv 2312.11983).

``metric: wifv``  s_j = Var(x_j) * ||W[:, j]||_2^2          weighted input variance (default)
``metric: ifv``   s_j = Var(x_j)                            input variance
``metric: wifn``  s_j = mean_i |W[i, j]| * rms(x_j)         weighted input norm
of o_proj or down_proj, x its input; the variance is over all calibration tokens
attention channel: s_j^2, squared once more as in FLAP's code (``square_attention``)
attention group:   the sum over its channels

A channel that hardly varies can be replaced by its mean, so FLAP pairs this score with a bias and
with the allocation ``standardized``; both are separate choices here.

Source: the code of FLAP. Established, from that code; there the running variance leaves out the
first sample and is scaled by the window length, and ``wifn`` has the L2 norm over tokens: neither
changes a ranking. Scores are no root mean squares: heads and channels do not compare.
Where a norm lies behind a sublayer (Gemma 2, OLMo 2), W has that norm's gain on its rows and x is
divided by the dense root mean square of what enters it: a reconstruction.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bipline.compression.criteria.interface import (
    INPUTS,
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    column_norms,
    mean_absolute_columns,
    sum_of_columns,
)
from bipline.compression.criteria.needs import MOMENTS
from bipline.compression.criteria.second_moments import second_moments

NEEDS = MOMENTS


class FlapOptions(Options):
    """The metric, and whether scores of attention channels are squared as in FLAP's code."""

    metric: Literal["wifv", "ifv", "wifn"] = "wifv"
    square_attention: bool = True


OPTIONS = FlapOptions
QUERY_HEADS = True


def reads(options: FlapOptions) -> frozenset[str]:
    """Moments of both inputs, the first ones too, whatever the metric."""
    moments = {f"{place}_{kind}" for place in INPUTS.values() for kind in ("sums", "squares")}
    return frozenset({"tokens", *moments})


def observe(block: Block, tokens: Tokens, options: FlapOptions) -> Sums:
    """Sums and sums of squares of what enters o_proj and down_proj."""
    firsts = {
        f"{place}_sums": sum_of_columns(block.output_inputs(sublayer, tokens))
        for sublayer, place in INPUTS.items()
    }
    return {**second_moments(block, tokens), **firsts}


def score(sums: Sums, block: Block, options: FlapOptions) -> BlockScores:
    """Scores of channels, and of groups by sum."""
    attention, ffn = (
        _channels(block.output_matrix(sublayer), place, sums, options)
        for sublayer, place in INPUTS.items()
    )
    if options.square_attention:
        attention = attention.square()
    return BlockScores.of_channels(attention, ffn, block.shape)


def _channels(weight: Tensor, place: str, sums: Sums, options: FlapOptions) -> Tensor:
    squares = sums[f"{place}_squares"] / sums["tokens"]
    if options.metric == "wifn":
        return squares.sqrt() * mean_absolute_columns(weight)
    variance = (squares - (sums[f"{place}_sums"] / sums["tokens"]).square()).clamp(min=0)
    return variance if options.metric == "ifv" else variance * column_norms(weight).square()
