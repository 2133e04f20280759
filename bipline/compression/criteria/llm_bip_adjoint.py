"""``llm-bip-adjoint``: how far a head moves the block's output, by random probes (ours).

FFN channel:        as in ``llm-bip`` (exact)
attention group k:  s_k = sqrt(mean over tokens and probes of (sum_{j in C_k} e_j o_j)^2)
    e = Wo^T (I + J)^T r          r a random sign vector per token and probe
    J^T r = t - h (h.t) / (hidden_size rms^2),   t = g * z / rms
    z = Wu^T (a(p) * m) + Wg^T (a'(p) * q * m),   m = Wd^T r

p and q are the outputs of gate_proj and up_proj, h the input of the FFN's RMSNorm, g its gain, a
the activation that the model's config names, J the Jacobian of the FFN half. For every token the
expected square is ||(I + J) Wo[:, C_k] o||^2, the first-order change of the block's output when
the group goes, without a bound: signs are kept that ``llm-bip`` loses. All groups come from one
backward product, so a probe costs about one FFN pass however many heads there are, where
``llm-bip-exact`` costs one pass per KV head. What it leaves out is the curvature of the FFN.
``probes`` divides the variance; the signs depend on the seed, the block and the token's place
alone.

Where the FFN has no gate (Starcoder2, Nemotron), z = Wu^T (a'(q) * m), and what a LayerNorm takes
the mean away of is taken the mean away of here too.

Where norms lie behind sublayers (Gemma 2, OLMo 2) their derivatives are in J and before Wo^T, and
the FFN channel's score is that of ``llm-bip-exact``.

Source: ours. What it estimates is what LLM-BIP (arXiv 2412.06419) bounds.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bipline.compression.criteria.draws import random_signs, seed_of
from bipline.compression.criteria.interface import (
    OUTPUT_MATRICES,
    PROJECTED,
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    root_mean_square,
)
from bipline.compression.criteria.llm_bip_exact import channel_moments, channel_scores
from bipline.compression.criteria.needs import TOKENS
from bipline.model.builds import Sublayer
from bipline.model.checkpoint import widened
from bipline.model.floor import Counted
from bipline.model.shapes import ModelShape
from bipline.model.slopes import slopes

NEEDS = TOKENS


class AdjointOptions(Options):
    """How many sign vectors are drawn for each token."""

    probes: Annotated[int, Field(ge=1, le=64)] = 4


OPTIONS = AdjointOptions


def reads(options: AdjointOptions) -> frozenset[str]:
    """The FFN's moments, and squares that bear how they were probed."""
    return frozenset({"tokens", "ffn_activation_squares", _name(options)})


def observe(block: Block, tokens: Tokens, options: AdjointOptions) -> Sums:
    """The FFN's moments, and each group's sum of squares over tokens and probes."""
    adjoint = _Adjoint(block, tokens)
    output, groups = widened(tokens["attention_output"]), block.shape.num_key_value_heads
    squares = torch.zeros(groups, dtype=torch.float64, device=output.device)
    for probe in range(options.probes):
        seed = seed_of(options.seed, block.index, probe)
        signs = random_signs(tokens.places, block.shape.hidden_size, seed).to(output)
        moved = (adjoint(signs) * output).unflatten(1, (groups, -1)).sum(-1)
        squares += moved.square().sum(0, dtype=torch.float64)
    return {**channel_moments(block, tokens), _name(options): squares}


def operations(shape: ModelShape, options: AdjointOptions, windows: int, seqlen: int) -> Counted:
    """Every probe's way back through the FFN and o_proj of a block; in float32 at least.

    Floating-point operations on windows of ``seqlen`` tokens.
    """
    blocks = [shape.block(index) for index in range(shape.num_hidden_layers)]
    each = sum(
        block.channel_weights * block.intermediate_size
        + block.hidden_size * block.num_attention_heads * block.head_dim
        for block in blocks
    )
    total = 2.0 * windows * seqlen * options.probes * each
    return Counted(total, total)


def score(sums: Sums, block: Block, options: AdjointOptions) -> BlockScores:
    """Root mean squares over tokens and probes."""
    draws = sums["tokens"] * options.probes
    return BlockScores(
        attention_groups=root_mean_square(sums[_name(options)], draws),
        ffn_channels=channel_scores(sums, block),
    )


class _Adjoint:
    """e = Wo^T A^T (I + J)^T r for some tokens: ``[tokens, d] -> [tokens, a]``.

    A is the derivative of the norm behind attention, where there is one.
    """

    def __init__(self, block: Block, tokens: Tokens) -> None:
        self._output, self._down = (widened(block.weights[n]) for n in OUTPUT_MATRICES.values())
        self._parallel = block.parallel
        self._before, self._hidden = block.norm_before("ffn"), widened(tokens["residual"])
        self._behind = {name: block.norm_behind(name) for name in PROJECTED}
        self._projected = {
            name: widened(tokens[PROJECTED[name]])
            for name, norm in self._behind.items()
            if norm.gain is not None
        }
        outputs = [widened(tokens[name]) for name in ("up", "gate")[: 1 + block.gated]]
        through = slopes(block.hidden_act, *outputs)
        self._through = [(through[name], widened(block.weights[name])) for name in through]

    def __call__(self, signs: Tensor) -> Tensor:
        """The adjoint product; one product with a d x f matrix and one or two back."""
        if self._parallel:
            return self._pulled("attention", signs) @ self._output
        inner = self._pulled("ffn", signs) @ self._down
        parts = [(slope * inner) @ matrix for slope, matrix in self._through]
        back = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        through = self._before.pulled(self._hidden, back)
        return self._pulled("attention", signs + through) @ self._output

    def _pulled(self, sublayer: Sublayer, sides: Tensor) -> Tensor:
        """Through the norm behind a sublayer, where there is one."""
        if sublayer not in self._projected:
            return sides
        return self._behind[sublayer].pulled(self._projected[sublayer], sides)


def _name(options: AdjointOptions) -> str:
    return f"probed_squares_{options.probes}_{options.seed}"
