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

Where norms lie behind sublayers (Gemma 2, OLMo 2) both are held as in ``llm-bip``, and c_up and
c_gate are of a(p) and a'(p) q over the root mean square of what enters the norm behind the FFN.
Where there is none before the FFN, D is 1.

Source: ours, the bound of LLM-BIP (arXiv 2412.06419) taken through a gated FFN.
"""

from __future__ import annotations

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
from bipline.model.activations import value_and_slope

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
    gate, up = tokens["gate"], tokens["up"]
    behind = block.norm_behind("ffn").gain is not None
    scale = block.output_scale("ffn", tokens) if behind else gate.new_ones(len(gate), 1)
    up_gain, gate_gain = _gains(gate, up, scale, block.hidden_act)
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
    gate: torch.Tensor, up: torch.Tensor, scale: torch.Tensor, hidden_act: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over tokens of a(p)^2 and (a'(p) q)^2, tile by tile: ``[tokens, f] -> [f]``.

    Both are scaled token by token, ``[tokens, 1]``.
    """
    totals = gate.new_zeros(2, gate.shape[1], dtype=torch.float64)
    for p, q, factor in zip(tiles(gate), tiles(up), tiles(scale), strict=True):
        value, slope = value_and_slope(hidden_act, p)
        totals[0] += column_sums(value.mul_(factor).square_())
        totals[1] += column_sums(slope.mul_(q).mul_(factor).square_())
    return totals[0], totals[1]


def propagated_weight(sums: Sums, block: Block) -> torch.Tensor:
    """w ``[d]``: how much a change of each hidden channel after attention can move the output."""
    if block.parallel:
        return 1 + through_ffn(sums, block)
    gate, up = block.weights["mlp.gate_proj.weight"], block.weights["mlp.up_proj.weight"]
    gain = block.norm_before("ffn").gain
    reach = output_reach(block)
    up_gain = root_mean_square(sums["up_gain_squares"], sums["tokens"])
    gate_gain = root_mean_square(sums["gate_gain_squares"], sums["tokens"])
    norm = sums["inverse_norms"] / sums["tokens"]
    if gain is not None:
        norm = norm * gain.abs().double()
    through_up = absolute_product(up, up_gain * reach)
    through_gate = absolute_product(gate, gate_gain * reach)
    return 1 + norm * (through_up + through_gate)
