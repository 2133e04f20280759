"""``llm-bip-glu``: LLM-BIP's bound with the gate and the RMSNorm in it (ours).

FFN channel:          as in ``llm-bip`` (exact)
attention channel j:  s_j = rms(o_j) * sum_m |Wo[m, j]| w_m
    w = 1 + D * (|Wu|^T (c_up * v) + |Wg|^T (c_gate * v)),   v = |Wd|^T 1
    D      = |g| * mean of 1/rms(h)
    c_up   = rms of a(p)       how strongly the gate lets the up projection through
    c_gate = rms of a'(p) * q  how strongly the gate itself moves the product
attention group:      the sum over its channels
expert, its channels: as in ``llm-bip``
    with experts:  w = 1 + D * sum_e (|Wu_e|^T (c_up * v_e) + |Wg_e|^T (c_gate * v_e)),
    the gains times the router's weight g, which is 0 where an expert sees no token, and what all
    tokens share beside them (GLM-4.5) with g = 1

p and q are the outputs of gate_proj and up_proj, h the input of the FFN's RMSNorm, g its gain, and
a is the activation that the model's config names. For a single token this is the first-order
bound of the change of the block's output, less one term: what the RMSNorm's derivative does along
h, (|g|/r) |h| (|h|.|d|) / (hidden_size r^2). With gains averaged over tokens it estimates that
bound; on trained weights the slack is large (see tests/oracles/test_criteria.py).

That the router's weights move with what enters it is left out: with experts no bound, but an
estimate of what goes through those that the token sees.

Where the FFN has no gate (Starcoder2, Nemotron), w = 1 + D * |Wu|^T (c * v) with c = rms of a'(q),
and of a LayerNorm D has the deviation in the place of the root mean square.

Where norms lie behind sublayers (Gemma 2, OLMo 2) both are held as in ``llm-bip``, and c_up and
c_gate are of a(p) and a'(p) q over the root mean square of what enters the norm behind the FFN.
Where there is none before the FFN, D is 1.

Source: ours, the bound of LLM-BIP (arXiv 2412.06419) taken through a gated FFN; through experts a
reconstruction of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat

import torch

from bipline.compression.criteria.experts import Experts
from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    absolute_product,
    column_sums,
    root_mean_square,
    sum_of_squares,
    tiles,
)
from bipline.compression.criteria.llm_bip import (
    attention_channels,
    ffn_scores,
    of_experts,
    output_reach,
    through_ffn,
)
from bipline.compression.criteria.needs import MOMENTS
from bipline.compression.criteria.second_moments import second_moments
from bipline.model.experts import SHARED_DOWN, SHARED_GATE, SHARED_UP
from bipline.model.slopes import GATE, UP, slopes

NEEDS = MOMENTS
OPTIONS = Options
EXPERTS = True
QUERY_HEADS = True
GAINS = ("up_gain_squares", "gate_gain_squares")
SHARED_GAINS = ("shared_up_gain_squares", "shared_gate_gain_squares")
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
    if block.shape.num_experts:
        return second_moments(block, tokens) | _through_experts(block, tokens)
    outputs = [tokens[name] for name in ("up", "gate")[: 1 + block.gated]]
    behind = block.norm_behind("ffn").gain is not None
    scale = block.output_scale("ffn", tokens) if behind else None
    up_gain, gate_gain = _gains(outputs, scale, block.hidden_act)
    return {
        **second_moments(block, tokens),
        "up_gain_squares": up_gain,
        "gate_gain_squares": gate_gain,
        "inverse_norms": _inverse_norms(block, tokens),
    }


def _inverse_norms(block: Block, tokens: Tokens) -> torch.Tensor:
    """The sum of one over what the norm before the FFN divides by."""
    # The eps inside RMSNorm's root is left out: it can only make the gain smaller.
    norm = replace(block.norm_before("ffn"), eps=0.0)
    inverses = [norm.inverse(tile) for tile in tiles(tokens["residual"])]
    return torch.cat(inverses).sum(dtype=torch.float64)


def _through_experts(block: Block, tokens: Tokens) -> Sums:
    """The gains of every expert ``[experts, f]``, of what all share, and 1/rms of their input."""
    shape, like = block.shape, tokens["expert_input"]
    gains = like.new_zeros(2, shape.num_experts, shape.intermediate_size, dtype=torch.float64)
    for expert, weights, gate, up in Experts(block).routed(tokens):
        for total, slope in zip(gains, block.gating.slopes(gate, up), strict=True):
            total[expert] = sum_of_squares(slope * weights[:, None].to(slope))
    sums = {"up_gain_squares": gains[0], "gate_gain_squares": gains[1]}
    if shape.shared_channels:
        outputs = [tokens["shared_up"], tokens["shared_gate"]]
        found = _gains(outputs, None, block.hidden_act)
        sums |= dict(zip(SHARED_GAINS, found, strict=True))
    return sums | {"inverse_norms": _inverse_norms(block, tokens)}


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Scores from the sums; matrix-vector products only, so 4 d f operations a block."""
    attention = attention_channels(sums, block, propagated_weight(sums, block))
    if block.shape.num_experts:
        return of_experts(sums, block, attention)
    return BlockScores.of_channels(attention, ffn_scores(sums, block), block.shape)


def _gains(
    outputs: Sequence[torch.Tensor], scale: torch.Tensor | None, hidden_act: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over tokens of squared slopes in up_proj's and gate_proj's outputs: ``[f]`` each.

    ``outputs`` are these, ``[tokens, f]``; without a gate its sum is zero. All are scaled token by
    token, ``[tokens, 1]``, where there is a scale.
    """
    totals = outputs[0].new_zeros(2, outputs[0].shape[1], dtype=torch.float64)
    scales = repeat(None) if scale is None else tiles(scale)
    for factor, *parts in zip(scales, *map(tiles, outputs), strict=False):
        for total, slope in zip(totals, slopes(hidden_act, *parts).values(), strict=False):
            scaled = slope if factor is None else slope.mul_(factor)
            total += column_sums(scaled.square_())
    return totals[0], totals[1]


def propagated_weight(sums: Sums, block: Block) -> torch.Tensor:
    """w ``[d]``: how much a change of each hidden channel after attention can move the output."""
    if block.parallel:
        return 1 + through_ffn(sums, block)
    gain = block.norm_before("ffn").gain
    norm = sums["inverse_norms"] / sums["tokens"]
    if gain is not None:
        norm = norm * gain.abs().double()
    moved = _moved_experts if block.shape.num_experts else _moved_ffn
    return 1 + norm * moved(sums, block)


def _moved_ffn(sums: Sums, block: Block) -> torch.Tensor:
    """How far a change of what enters an FFN can move its output, ``[d]``."""
    reach = output_reach(block)
    up_gain = root_mean_square(sums["up_gain_squares"], sums["tokens"])
    through = absolute_product(block.weights[UP], up_gain * reach)
    if block.gated:
        gate_gain = root_mean_square(sums["gate_gain_squares"], sums["tokens"])
        through = through + absolute_product(block.weights[GATE], gate_gain * reach)
    return through


def _moved_experts(sums: Sums, block: Block) -> torch.Tensor:
    """The same through all experts, and through what all tokens share beside them."""
    ones = torch.ones(block.shape.hidden_size)
    total = torch.zeros(block.shape.hidden_size, dtype=torch.float64, device=sums["tokens"].device)
    gains = [root_mean_square(sums[name], sums["tokens"]) for name in GAINS]
    experts = Experts(block)
    for expert in range(len(experts)):
        reach = absolute_product(experts.down(expert), ones)
        for part, gain in zip(reversed(experts.gate_up(expert)), gains, strict=True):
            total += absolute_product(part, gain[expert] * reach)
    if (shared := block.weights.get(SHARED_DOWN)) is not None:
        reach = absolute_product(shared, ones)
        for name, matrix in zip(SHARED_GAINS, (SHARED_UP, SHARED_GATE), strict=True):
            gain = root_mean_square(sums[name], sums["tokens"])
            total += absolute_product(block.weights[matrix], gain * reach)
    return total
