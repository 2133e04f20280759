"""Row maps: what becomes of a row's output in its sublayer, and the transposed way back.

Behind gates, or attention weights, that stay as they are, what enters down_proj or o_proj is linear
in what up_proj or v_proj puts out; in what an activation reads (gate_proj's outputs, or up_proj's
where there is no gate) it is so for small changes, by the activation's derivative. All these maps
are known, so no pass through the sublayer and no automatic differentiation is needed for their
products, and what they are made of is the same for all rows that are tried: gates, attention
weights or slopes, times the roots of the tokens' weights.

Shapes: ``outputs`` of up_proj, gate_proj or v_proj ``[windows, seqlen, rows]``, ``inputs`` of
down_proj or o_proj ``[windows, seqlen, columns]``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bipline.model.halves import V_PROJ, Halves


class RowMap(Protocol):
    """A sublayer's map, at the ``factors`` of a micro-batch."""

    def factors(self, normed: Tensor, roots: Tensor) -> Tensor:
        """What a micro-batch's map is made of; ``normed`` is what the rows read."""

    def present(self, normed: Tensor, roots: Tensor, factors: Tensor, outputs: Tensor) -> Tensor:
        """What is in front of the matrix, weighed by token, where the rows put out all of this."""

    def inputs(self, factors: Tensor, outputs: Tensor) -> Tensor:
        """What changes there, weighed by token, where the rows put out so much more."""

    def outputs(self, factors: Tensor, inputs: Tensor) -> Tensor:
        """The transpose of :meth:`inputs`."""

    def squares(self, factors: Tensor) -> Tensor | None:
        """Of what a row's output is multiplied with, over tokens, ``[rows]``; None for mixtures."""


def row_map(halves: Halves, rows: str) -> RowMap:
    """The map behind v_proj, up_proj or gate_proj."""
    if rows == V_PROJ:
        return Mixtures(halves)
    return Slopes(halves, rows) if rows == halves.activated else Gates(halves)


class Gates:
    """An FFN: every output times its gate; factors are ``[windows, seqlen, rows]``."""

    def __init__(self, halves: Halves) -> None:
        self._halves = halves

    def factors(self, normed: Tensor, roots: Tensor) -> Tensor:
        """The gates behind their activation."""
        return self._halves.gates(normed).mul_(roots)

    def present(self, normed: Tensor, roots: Tensor, factors: Tensor, outputs: Tensor) -> Tensor:
        """The same as any part of it."""
        return self.inputs(factors, outputs)

    def inputs(self, factors: Tensor, outputs: Tensor) -> Tensor:
        """Gated outputs."""
        return outputs * factors

    def outputs(self, factors: Tensor, inputs: Tensor) -> Tensor:
        """The same, for it is diagonal."""
        return inputs * factors

    def squares(self, factors: Tensor) -> Tensor:
        """Of the gates."""
        return factors.flatten(0, 1).square().sum(0)


class Slopes(Gates):
    """Rows that an activation reads: every output times its derivative, and what it gates."""

    def __init__(self, halves: Halves, rows: str) -> None:
        super().__init__(halves)
        self._name = rows

    def factors(self, normed: Tensor, roots: Tensor) -> Tensor:
        """Slopes at the outputs as they are."""
        return self._halves.slopes(self._name, normed).mul_(roots)

    def present(self, normed: Tensor, roots: Tensor, factors: Tensor, outputs: Tensor) -> Tensor:
        """Through the activation itself."""
        halves = self._halves
        if not halves.gated:
            return halves.activation(outputs).mul_(roots)
        return halves.activation(halves.behind_norm(normed)["up"], outputs).mul_(roots)


class Mixtures:
    """Attention: values mixed over tokens, once for every query head of their group.

    Factors are ``[windows, groups, queries * seqlen, seqlen]``.
    """

    def __init__(self, halves: Halves) -> None:
        self._halves, self._head_dim = halves, halves.head_dim

    def factors(self, normed: Tensor, roots: Tensor) -> Tensor:
        """The attention weights, by group."""
        weights = self._halves.attention_weights(normed).mul_(roots[:, None])
        groups = len(self._halves.weights["self_attn.v_proj.weight"]) // self._head_dim
        return weights.unflatten(1, (groups, -1)).flatten(2, 3)

    def present(self, normed: Tensor, roots: Tensor, factors: Tensor, outputs: Tensor) -> Tensor:
        """The same as any part of it."""
        return self.inputs(factors, outputs)

    def inputs(self, factors: Tensor, outputs: Tensor) -> Tensor:
        """Every head's mixture of its group's values."""
        values = outputs.unflatten(2, (-1, self._head_dim)).transpose(1, 2)
        mixed = (factors @ values).unflatten(2, (-1, outputs.shape[1]))
        return mixed.flatten(1, 2).transpose(1, 2).flatten(2)

    def outputs(self, factors: Tensor, inputs: Tensor) -> Tensor:
        """Every token's share in all mixtures of its group."""
        heads = inputs.unflatten(2, (-1, self._head_dim)).transpose(1, 2)
        grouped = heads.unflatten(1, (factors.shape[1], -1)).flatten(2, 3)
        return (factors.mT @ grouped).transpose(1, 2).flatten(2)

    def squares(self, factors: Tensor) -> None:
        """Not known by row."""
