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

Source: ours. What it estimates is what LLM-BIP (arXiv 2412.06419) bounds.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bipline.compression.criteria.draws import random_signs, seed_of
from bipline.compression.criteria.interface import (
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    root_mean_square,
    second_moments,
)
from bipline.compression.criteria.llm_bip import ffn_scores
from bipline.compression.criteria.needs import TOKENS
from bipline.model.activations import value_and_slope
from bipline.model.checkpoint import widened

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
    moments = second_moments(tokens)
    del moments["attention_output_squares"]
    return {**moments, _name(options): squares}


def score(sums: Sums, block: Block, options: AdjointOptions) -> BlockScores:
    """Root mean squares over tokens and probes."""
    draws = sums["tokens"] * options.probes
    return BlockScores(
        attention_groups=root_mean_square(sums[_name(options)], draws),
        ffn_channels=ffn_scores(sums, block),
    )


class _Adjoint:
    """e = Wo^T (I + J)^T r for some tokens: ``[tokens, d] -> [tokens, a]``."""

    def __init__(self, block: Block, tokens: Tokens) -> None:
        names = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        held = [widened(block.weights[f"{name}.weight"]) for name in names]
        self._output, self._gate, self._up, self._down = held
        self._gain, self._normed_of = block.ffn_gain, block.normed_of
        self._hidden = block.normed_of(widened(tokens["residual"]))
        squares = self._hidden.square().mean(-1, keepdim=True)
        self._inverse = (squares + block.rms_norm_eps).rsqrt()
        gate, up = widened(tokens["gate"]), widened(tokens["up"])
        self._through_up, slope = value_and_slope(block.hidden_act, gate)
        self._through_gate = slope * up

    def __call__(self, signs: Tensor) -> Tensor:
        """The adjoint product; two products with d x f matrices and one more back."""
        inner = signs @ self._down
        back = (self._through_up * inner) @ self._up + (self._through_gate * inner) @ self._gate
        normed = self._gain * back * self._inverse
        along = (self._hidden * normed).mean(-1, keepdim=True) * self._inverse.square()
        # Centring is its own adjoint.
        return (signs + self._normed_of(normed) - self._hidden * along) @ self._output


def _name(options: AdjointOptions) -> str:
    return f"probed_squares_{options.probes}_{options.seed}"
