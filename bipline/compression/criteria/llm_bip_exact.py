"""``llm-bip-exact``: what LLM-BIP bounds, measured: the change of the block's output (ours).

FFN channel:        as in ``llm-bip`` (exact)
attention group k:  s_k = sqrt(mean over tokens of ||D_k + F(h + D_k) - F(h)||^2)
    D_k = -Wo[:, C_k] o[C_k]      what the residual stream loses when the group goes
    F(h) = Wd (a(p) * q),  p = Wg n(h),  q = Wu n(h),  n the RMSNorm before the FFN

Nothing is bounded and attention is not run again: one pass through the FFN per group, so it costs
as many FFN passes as the block has KV heads. Attention and FFN scores are in one unit and both
exact, so they can be compared inside a block. a is the activation that the model's config names.

Source: ours. What it measures is what LLM-BIP (arXiv 2412.06419) bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

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
from bipline.model.activations import activation
from bipline.model.checkpoint import widened

NEEDS = TOKENS
OPTIONS = Options
SUMS = frozenset({"tokens", "ffn_activation_squares", "group_change_squares"})


def reads(options: Options) -> frozenset[str]:
    """What ``score`` reads."""
    return SUMS


def observe(block: Block, tokens: Tokens, options: Options) -> Sums:
    """The FFN's moments, and each group's sum over tokens of its squared change."""
    feed_forward = FeedForward(block)
    hidden = widened(tokens["residual"])
    before = feed_forward(hidden)
    output = widened(tokens["attention_output"])
    columns = widened(block.weights["self_attn.o_proj.weight"])
    width = block.group_width
    squares = []
    for part, reads in zip(output.split(width, 1), columns.split(width, 1), strict=True):
        change = -linear(part, reads)
        change = change + feed_forward(hidden + change) - before
        squares.append(change.square().sum(dtype=torch.float64))
    moments = second_moments(tokens)
    del moments["attention_output_squares"]
    return {**moments, "group_change_squares": torch.stack(squares)}


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Root mean squares of the changes."""
    return BlockScores(
        attention_groups=root_mean_square(sums["group_change_squares"], sums["tokens"]),
        ffn_channels=ffn_scores(sums, block),
    )


class FeedForward:
    """A block's FFN half on the residual stream, in at least float32: ``[tokens, d]``.

    The bias of down_proj is left out, because only differences are taken.
    """

    def __init__(self, block: Block) -> None:
        held = {name: widened(weight) for name, weight in block.weights.items() if "mlp" in name}
        self._gate = held["mlp.gate_proj.weight"], held.get("mlp.gate_proj.bias")
        self._up = held["mlp.up_proj.weight"], held.get("mlp.up_proj.bias")
        self._down = held["mlp.down_proj.weight"]
        self._gain, self._normed_of = block.ffn_gain, block.normed_of
        self._eps = block.rms_norm_eps
        self._activation = activation(block.hidden_act)

    def __call__(self, hidden: Tensor) -> Tensor:
        """F(h) for every token."""
        hidden = self._normed_of(hidden)
        root = (hidden.square().mean(-1, keepdim=True) + self._eps).rsqrt()
        inner = hidden * root * self._gain
        gate = self._activation(linear(inner, *self._gate))
        return linear(gate * linear(inner, *self._up), self._down)
