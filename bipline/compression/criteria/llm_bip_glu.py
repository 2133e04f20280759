"""``llm-bip-glu``: LLM-BIP's bound with the gate and the RMSNorm in it (ours).

FFN channel:          as in ``llm-bip`` (exact)
attention channel j:  s_j = rms(o_j) * sum_m |Wo[m, j]| w_m
    w = 1 + D * (|Wu|^T (c_up * v) + |Wg|^T (c_gate * v)),   v = |Wd|^T 1
    D      = |g| * mean of 1/rms(h)
    c_up   = rms of a(p)       how strongly the gate lets the up projection through
    c_gate = rms of a'(p) * q  how strongly the gate itself moves the product
attention group:      the sum over its channels

p and q are the outputs of gate_proj and up_proj, h the input of the FFN's RMSNorm, g its gain, and
a is the activation that the model's config names. For a single token this is the first-order
bound of the change of the block's output, less one term: what the RMSNorm's derivative does along
h, (|g|/r) |h| (|h|.|d|) / (hidden_size r^2). With gains averaged over tokens it estimates that
bound; on trained weights the slack is large (see tests/oracles/test_criteria.py).

Where the FFN has no gate (Starcoder2, Nemotron), w = 1 + D * |Wu|^T (c * v) with c = rms of a'(q),
and of a LayerNorm D has the deviation in the place of the root mean square.

Where norms lie behind sublayers (Gemma 2, OLMo 2) both are held as in ``llm-bip``, and c_up and
c_gate are of a(p) and a'(p) q over the root mean square of what enters the norm behind the FFN.
Where there is none before the FFN, D is 1.

Source: ours, the bound of LLM-BIP (arXiv 2412.06419) taken through a gated FFN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    absolute_product,
    column_sums,
    root_mean_square,
    tiles,
)
from bipline.compression.criteria.llm_bip import (
    attention_channels,
    ffn_scores,
    output_reach,
    through_ffn,
)
from bipline.compression.criteria.needs import MOMENTS
from bipline.compression.criteria.second_moments import second_moments
from bipline.compression.criteria.slopes import GATE, UP, slopes

NEEDS = MOMENTS
OPTIONS = Options
SUMS = frozenset(
    {
        "tokens",
        "attention_output_squares",
        "ffn_activation_squares",
        "up_gain_squares",
        "gate_gain_squares",
        "inverse_norms",
    }
)


def reads(options: Options) -> frozenset[str]:
    """What ``score`` reads."""
    return SUMS


def observe(block: Block, tokens: Tokens, options: Options) -> Sums:
    """The moments of ``llm-bip``, the two gains of the gated FFN and 1/rms of its input."""
    outputs = [tokens[name] for name in ("up", "gate")[: 1 + block.gated]]
    behind = block.norm_behind("ffn").gain is not None
    scale = block.output_scale("ffn", tokens) if behind else outputs[0].new_ones(len(outputs[0]), 1)
    up_gain, gate_gain = _gains(outputs, scale, block.hidden_act)
    # The eps inside RMSNorm's root is left out: it can only make the gain smaller.
    norm = replace(block.norm_before("ffn"), eps=0.0)
    inverses = [norm.inverse(tile) for tile in tiles(tokens["residual"])]
    return {
        **second_moments(block, tokens),
        "up_gain_squares": up_gain,
        "gate_gain_squares": gate_gain,
        "inverse_norms": torch.cat(inverses).sum(dtype=torch.float64),
    }


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Scores from the sums; matrix-vector products only, so 4 d f operations a block."""
    attention = attention_channels(sums, block, propagated_weight(sums, block))
    return BlockScores.of_channels(attention, ffn_scores(sums, block), block.shape)


def _gains(
    outputs: Sequence[torch.Tensor], scale: torch.Tensor, hidden_act: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over tokens of squared slopes in up_proj's and gate_proj's outputs: ``[f]`` each.

    ``outputs`` are these, ``[tokens, f]``; without a gate its sum is zero. All are scaled token by
    token, ``[tokens, 1]``.
    """
    totals = scale.new_zeros(2, outputs[0].shape[1], dtype=torch.float64)
    for factor, *parts in zip(tiles(scale), *map(tiles, outputs), strict=True):
        for total, slope in zip(totals, slopes(hidden_act, *parts).values(), strict=False):
            total += column_sums(slope.mul_(factor).square_())
    return totals[0], totals[1]


def propagated_weight(sums: Sums, block: Block) -> torch.Tensor:
    """w ``[d]``: how much a change of each hidden channel after attention can move the output."""
    if block.parallel:
        return 1 + through_ffn(sums, block)
    gain = block.norm_before("ffn").gain
    reach = output_reach(block)
    up_gain = root_mean_square(sums["up_gain_squares"], sums["tokens"])
    norm = sums["inverse_norms"] / sums["tokens"]
    if gain is not None:
        norm = norm * gain.abs().double()
    through = absolute_product(block.weights[UP], up_gain * reach)
    if block.gated:
        gate_gain = root_mean_square(sums["gate_gain_squares"], sums["tokens"])
        through = through + absolute_product(block.weights[GATE], gate_gain * reach)
    return 1 + norm * through
