"""A decoder block in its two halves: attention up to o_proj's input, the FFN up to down_proj's.

Compensation compares versions of o_proj and down_proj, so it needs what enters them and what comes
out, while everything before stays as it is. The arithmetic before is
transformers' own; the two matrices are applied here, so that a version may have a bias that the
source's class has none for, or other columns.

Shapes: hidden states and the residual stream are ``[windows, seqlen, hidden_size]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bipline.model.attention_weights import attention_weights
from bipline.model.block_loop import Block, BlockLoop
from bipline.model.block_reader import Weights
from bipline.model.builds import Sublayer
from bipline.model.experts import DOWN
from bipline.model.families import build_of
from bipline.model.gating import Gating
from bipline.model.mixture import Mixture
from bipline.model.products import quick_attention
from bipline.model.slopes import slopes

O_PROJ = "self_attn.o_proj"
V_PROJ = "self_attn.v_proj"
UP_PROJ = "mlp.up_proj"
GATE_PROJ = "mlp.gate_proj"
DOWN_PROJ = "mlp.down_proj"
# What families call the activation of an FFN.
ACTIVATIONS = ("act_fn", "activation_fn", "act")
SUBLAYER_OF: dict[str, Sublayer] = {O_PROJ: "attention", DOWN_PROJ: "ffn"}


class _Taken(Exception):
    """A forward pass is left where it has made what it was run for."""


@contextmanager
def _queries_per_group(attention: Any, held: Weights) -> Iterator[None]:
    """Tell transformers' module how many query heads each KV head has with these weights.

    One that fixes its heads has no number of them, and needs none.
    """
    if not hasattr(attention, "num_key_value_groups"):
        yield
        return
    before = attention.num_key_value_groups
    attention.num_key_value_groups = len(held["q_proj.weight"]) // len(held["k_proj.weight"])
    try:
        yield
    finally:
        attention.num_key_value_groups = before


class Halves:
    """One block's halves with these weights, of whatever width; a half may be missing.

    Widths are those of the weights: rows of q, k and v, of gate and up may be a selection.
    ``gated``: what enters down_proj is linear in what up_proj gives. ``parallel``: both halves read
    what enters the block. ``tells_weights``: whether :meth:`attention_weights` can be had.
    """

    def __init__(
        self, loop: BlockLoop, index: int, module: Any, weights: Mapping[str, Tensor]
    ) -> None:
        self._loop = loop
        self._module = module
        build = build_of(loop.checkpoint.family)
        self._norms, self.gated, self.parallel = build.norms, build.gated, build.parallel
        self.tells_weights = not loop.checkpoint.family.own_attention
        self.index = index
        self.weights: Weights = {
            name: weight.to(loop.device, loop.dtype) for name, weight in weights.items()
        }

    @classmethod
    def of(cls, block: Block) -> Halves:
        """The halves of the resident block; valid as long as it is."""
        return cls(block.loop, block.index, block.loop.around.blocks[block.index], block.weights)

    def changed(self, weights: Mapping[str, Tensor]) -> Halves:
        """The same arithmetic with these weights and no others."""
        return Halves(self._loop, self.index, self._module, weights)

    @property
    def rms_norm_eps(self) -> float:
        """What RMSNorm adds to a mean square."""
        return self._loop.checkpoint.rms_norm_eps

    @property
    def hidden_size(self) -> int:
        """How wide the stream is."""
        return self._loop.checkpoint.shape.hidden_size

    @property
    def head_dim(self) -> int:
        """Rows of v_proj that are one head's."""
        return self._loop.checkpoint.shape.head_dim

    @property
    def activated(self) -> str:
        """The matrix whose outputs the FFN's activation reads."""
        return GATE_PROJ if self.gated else UP_PROJ

    @property
    def has_attention(self) -> bool:
        """Whether there is an attention half."""
        return f"{O_PROJ}.weight" in self.weights

    @property
    def has_ffn(self) -> bool:
        """Whether there is an FFN half."""
        return f"{DOWN_PROJ}.weight" in self.weights or self.has_experts

    @property
    def has_experts(self) -> bool:
        """Whether the FFN half has experts, and no down_proj of its own."""
        return DOWN in self.weights

    @property
    def mixture(self) -> Mixture:
        """The FFN of a block with experts."""
        checkpoint = self._loop.checkpoint
        keys, config = checkpoint.family.clamped_gate, checkpoint.config
        gating = Gating.of(checkpoint.hidden_act, keys, config)
        transposed = build_of(checkpoint.family).transposed_experts
        return Mixture(self._module.mlp, self.weights, transposed, gating)

    def attention_input(self, hidden: Tensor) -> Tensor:
        """What enters q_proj, k_proj and v_proj, like ``hidden``."""
        return self._normed(self._norms["attention"].before, hidden)

    def attention_output(self, hidden: Tensor) -> Tensor:
        """What enters o_proj: ``[windows, seqlen, heads * head_dim]``."""
        seen: list[Tensor] = []
        attention = self._module.self_attn

        def take(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])
            raise _Taken  # what follows is not asked for

        handle = attention.o_proj.register_forward_pre_hook(take)
        handed = dict(self._loop.around.handed(self.index, hidden))
        if self._loop.checkpoint.family.sublayers_add:
            handed["residual"] = hidden
        try:
            normed, held = self.attention_input(hidden), self._held("self_attn")
            queries = _queries_per_group(attention, held)
            with suppress(_Taken), queries, quick_attention(hidden.shape[1]):
                torch.func.functional_call(attention, held, (normed,), handed)
        finally:
            handle.remove()
        return seen[0]

    def attention_weights(self, normed: Tensor) -> Tensor:
        """What every query head takes of every token: ``[windows, heads, seqlen, seqlen]``.

        ``normed`` is what enters q_proj and k_proj.
        """
        handed = self._loop.around.handed(self.index, normed)
        attention = self._module.self_attn
        return attention_weights(attention, self._held("self_attn"), normed, handed)

    def ffn_input(self, residual: Tensor) -> Tensor:
        """What enters up_proj, and gate_proj if any, like ``residual``."""
        return self._normed(self._norms["ffn"].before, residual)

    def gates(self, normed: Tensor) -> Tensor:
        """What up_proj's outputs are multiplied with, from what enters gate_proj."""
        return self._activated(self._in_ffn("gate_proj", normed))

    def slopes(self, name: str, normed: Tensor) -> Tensor:
        """How far what enters down_proj moves with what up_proj or gate_proj gives.

        ``normed`` is what enters these; ``[windows, seqlen, channels]``.
        """
        act = self._loop.checkpoint.hidden_act
        return slopes(act, **self.behind_norm(normed))[f"{name}.weight"]

    def up_and_gate(self, residual: Tensor) -> dict[str, Tensor]:
        """Outputs of up_proj, and of gate_proj if any: ``[windows, seqlen, channels]`` each."""
        return self.behind_norm(self.ffn_input(residual))

    def behind_norm(self, normed: Tensor) -> dict[str, Tensor]:
        """The same, from what enters up_proj."""
        names = ("up", "gate")[: 1 + self.gated]
        return {name: self._in_ffn(f"{name}_proj", normed) for name in names}

    def activation(self, up: Tensor, gate: Tensor | None = None) -> Tensor:
        """What enters down_proj: ``[windows, seqlen, channels]``."""
        return self._activated(up) if gate is None else self._activated(gate) * up

    def ffn_activation(self, residual: Tensor) -> Tensor:
        """What enters down_proj, from the residual stream: ``[windows, seqlen, channels]``."""
        return self.activation(**self.up_and_gate(residual))

    def matrix_inputs(self, name: str, entering: Tensor) -> Tensor:
        """What enters o_proj or down_proj, from the stream that enters its half."""
        inputs = self.attention_output if name == O_PROJ else self.ffn_activation
        return inputs(entering)

    def project(self, name: str, inputs: Tensor) -> Tensor:
        """Apply o_proj or down_proj to its inputs: ``[windows, seqlen, hidden_size]``."""
        return linear(inputs, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    @property
    def normed_behind(self) -> bool:
        """Whether what sublayers give is normed before it is added to the stream."""
        return any(norms.after for norms in self._norms.values())

    def queries_and_keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of q_proj and k_proj, before any norm, ``[windows, seqlen, width]``."""
        normed, held = self.attention_input(hidden), self._held("self_attn")
        queries, keys = (
            linear(normed, held[f"{name}.weight"], held.get(f"{name}.bias"))
            for name in ("q_proj", "k_proj")
        )
        return queries, keys

    def added(self, name: str, projected: Tensor) -> Tensor:
        """What a sublayer adds to the stream, from what its o_proj or down_proj gives."""
        return self._normed(self._norms[SUBLAYER_OF[name]].after, projected)

    def after_attention(self, hidden: Tensor) -> Tensor:
        """The residual stream after the attention half."""
        if not self.has_attention:
            return hidden
        return hidden + self.added(O_PROJ, self.project(O_PROJ, self.attention_output(hidden)))

    def after_ffn(self, residual: Tensor, hidden: Tensor) -> Tensor:
        """The block's output from the residual stream after attention and what enters the block."""
        if not self.has_ffn:
            return residual
        reads = self.ffn_reads(residual, hidden)
        if self.has_experts:
            return residual + self.experts_output(reads)
        inputs = self.ffn_activation(reads)
        return residual + self.added(DOWN_PROJ, self.project(DOWN_PROJ, inputs))

    def experts_output(self, residual: Tensor) -> Tensor:
        """What an FFN of experts adds to the stream, from the stream that it reads."""
        normed = self.ffn_input(residual)
        return self.mixture.output(normed.flatten(0, -2)).view_as(residual)

    def ffn_reads(self, residual: Tensor, hidden: Tensor) -> Tensor:
        """What the FFN reads: the stream after attention, or in a parallel block before it."""
        return hidden if self.parallel else residual

    def run(self, hidden: Tensor) -> Tensor:
        """The whole block."""
        return self.after_ffn(self.after_attention(hidden), hidden)

    def _activated(self, gate: Tensor) -> Tensor:
        mlp = self._module.mlp
        [name] = [name for name in ACTIVATIONS if hasattr(mlp, name)]
        activated: Tensor = getattr(mlp, name)(gate)
        return activated

    def _in_ffn(self, name: str, normed: Tensor) -> Tensor:
        held = self._held("mlp")
        return linear(normed, held[f"{name}.weight"], held.get(f"{name}.bias"))

    def _normed(self, name: str, hidden: Tensor) -> Tensor:
        """Behind the norm of this name; as it is where there is none."""
        if not name:
            return hidden
        normed: Tensor = torch.func.functional_call(
            getattr(self._module, name), self._held(name), (hidden,)
        )
        return normed

    def _held(self, part: str) -> Weights:
        """The weights of one part of the block, by their names inside it."""
        prefix = f"{part}."
        return {
            name.removeprefix(prefix): weight
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }
