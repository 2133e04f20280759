"""``llm-bip-exact``: what LLM-BIP bounds, measured: the change of the block's output (ours).

FFN channel:        as in ``llm-bip`` (exact)
attention group k:  s_k = sqrt(mean over tokens of ||D_k + F(h + D_k) - F(h)||^2)
    D_k = -Wo[:, C_k] o[C_k]      what the residual stream loses when the group goes
    F(h) = Wd (a(p) * q),  p = Wg n(h),  q = Wu n(h),  n the RMSNorm before the FFN

Nothing is bounded and attention is not run again: one pass through the FFN per group, so it costs
as many FFN passes as the block has KV heads. Attention and FFN scores are in one unit and both
exact, so they can be compared inside a block. a is the activation that the model's config names.

Where the FFN has no gate (Starcoder2, Nemotron), F(h) = Wd a(q); n is the LayerNorm that there is.
Where attention and FFN read the same stream (Cohere, Phi) a group's change is D_k itself.

Where norms lie behind sublayers (Gemma 2, OLMo 2), N behind attention and M behind the FFN:
D_k = N(z - Wo[:, C_k] o[C_k]) - N(z),  F(h) = M(Wd (a(p) * q)), and the FFN channel's score is the
root mean square of M(u - a_j Wd[:, j]) - M(u), in closed form for all channels at once: exact too.
Where queries and keys are normed over all heads (OLMo 2) the other heads are taken as they are.

Source: ours. What it measures is what LLM-BIP (arXiv 2412.06419) bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from bipline.compression.criteria.interface import (
    PROJECTED,
    Block,
    BlockScores,
    Options,
    Sums,
    Tokens,
    column_sums,
    root_mean_square,
    tiles,
)
from bipline.compression.criteria.llm_bip import ffn_scores
from bipline.compression.criteria.needs import TOKENS
from bipline.compression.criteria.second_moments import second_moments
from bipline.model.activations import activation
from bipline.model.builds import Sublayer
from bipline.model.checkpoint import widened
from bipline.model.floor import Counted
from bipline.model.shapes import ModelShape

NEEDS = TOKENS
CHANNEL_CHANGES = "channel_change_squares"
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
    width, behind = block.group_width, Behind(block, "attention", tokens)
    squares = []
    for part, reads in zip(output.split(width, 1), columns.split(width, 1), strict=True):
        change = behind.change(linear(part, reads))
        if not block.parallel:  # else the FFN never reads the change
            change = change + feed_forward(hidden + change) - before
        squares.append(change.square().sum(dtype=torch.float64))
    return {**channel_moments(block, tokens), "group_change_squares": torch.stack(squares)}


def operations(shape: ModelShape, _options: Options, windows: int, seqlen: int) -> Counted:
    """One pass through the FFN for every group of a block, and one as it is; in float32 at least.

    Floating-point operations on windows of ``seqlen`` tokens.
    """
    each = 0.0
    for block in map(shape.block, range(shape.num_hidden_layers)):
        feed_forward = block.channel_weights * block.intermediate_size
        each += (block.num_key_value_heads + 1) * feed_forward
        each += block.hidden_size * block.num_attention_heads * block.head_dim
    total = 2.0 * windows * seqlen * each
    return Counted(total, total)


def channel_moments(block: Block, tokens: Tokens) -> Sums:
    """The FFN's moments, and with a norm behind it every channel's sum of squared changes."""
    moments, norm = second_moments(block, tokens), block.norm_behind("ffn")
    del moments["attention_output_squares"]
    if norm.gain is None:
        return moments
    down = widened(block.weights["mlp.down_proj.weight"])
    parts = zip(tiles(tokens["ffn_projected"]), tiles(tokens["ffn_activation"]), strict=True)
    squares = [column_sums(norm.column_changes(*part, down)) for part in parts]
    return {**moments, CHANNEL_CHANGES: torch.stack(squares).sum(0)}


def channel_scores(sums: Sums, block: Block) -> Tensor:
    """Root mean squares ``[f]`` of the exact changes when a channel goes."""
    if CHANNEL_CHANGES in sums:
        return root_mean_square(sums[CHANNEL_CHANGES], sums["tokens"])
    return ffn_scores(sums, block)


class Behind:
    """What the stream loses of what a sublayer adds, when a part of what enters its norm goes."""

    def __init__(self, block: Block, sublayer: Sublayer, tokens: Tokens) -> None:
        self._norm = block.norm_behind(sublayer)
        if self._norm.gain is not None:
            self._projected = widened(tokens[PROJECTED[sublayer]])
            self._added = self._norm(self._projected)

    def change(self, part: Tensor) -> Tensor:
        """The change of what is added when ``part`` ``[tokens, d]`` of what enters goes."""
        if self._norm.gain is None:
            return -part
        return self._norm(self._projected - part) - self._added


def score(sums: Sums, block: Block, options: Options) -> BlockScores:
    """Root mean squares of the changes."""
    return BlockScores(
        attention_groups=root_mean_square(sums["group_change_squares"], sums["tokens"]),
        ffn_channels=channel_scores(sums, block),
    )


class FeedForward:
    """A block's FFN half on the residual stream, in at least float32: ``[tokens, d]``.

    Only differences are taken, so a bias of down_proj counts where a norm lies behind it alone.
    """

    def __init__(self, block: Block) -> None:
        held = {name: widened(weight) for name, weight in block.weights.items() if "mlp" in name}
        self._gate = held.get("mlp.gate_proj.weight"), held.get("mlp.gate_proj.bias")
        self._up = held["mlp.up_proj.weight"], held.get("mlp.up_proj.bias")
        self._down = held["mlp.down_proj.weight"], held.get("mlp.down_proj.bias")
        self._before, self._behind = block.norm_before("ffn"), block.norm_behind("ffn")
        self._activation = activation(block.hidden_act)

    def __call__(self, hidden: Tensor) -> Tensor:
        """F(h) for every token."""
        inner = self._before(hidden)
        return self._behind(linear(self._activated(inner), *self._down))

    def _activated(self, inner: Tensor) -> Tensor:
        """What enters down_proj."""
        up, (gate, bias) = linear(inner, *self._up), self._gate
        if gate is None:
            return self._activation(up)
        return self._activation(linear(inner, gate, bias)) * up
