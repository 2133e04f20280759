"""Norms of a block as criteria compute with them: values, derivatives, and what a column takes.

Where a norm lies behind a sublayer, the sublayer adds N(W x) to the residual stream, with
N(z) = g * z / r and r = sqrt(mean z^2 + eps). While r is held, this is the matrix ``g W`` on the
inputs ``x / r``: what cheap criteria score. What becomes of r when a column goes is known in closed
form too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RmsNorm:
    """A norm of a block: ``gain`` ``[d]`` in at least float32; None where there is no norm at all.

    ``centred``: it takes the mean away first, as LayerNorm does, which may add a ``bias`` ``[d]``.
    Hidden states are ``[tokens, d]``.
    """

    gain: Tensor | None = None
    eps: float = 0.0
    centred: bool = False
    bias: Tensor | None = None

    def centre(self, hidden: Tensor) -> Tensor:
        """What the root mean square is of: ``hidden``, or its distance to its mean."""
        return hidden - hidden.mean(-1, keepdim=True) if self.centred else hidden

    def inverse(self, hidden: Tensor) -> Tensor:
        """One over the root mean square, ``[tokens, 1]``; ones without a norm."""
        if self.gain is None:
            return hidden.new_ones(len(hidden), 1)
        return (self.centre(hidden).square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def __call__(self, hidden: Tensor) -> Tensor:
        """What leaves the norm."""
        if self.gain is None:
            return hidden
        normed = self.centre(hidden) * self.inverse(hidden) * self.gain
        return normed if self.bias is None else normed + self.bias

    def pulled(self, hidden: Tensor, sides: Tensor) -> Tensor:
        """The transpose of the derivative at ``hidden``, applied to sides ``[tokens, d]``."""
        if self.gain is None:
            return sides
        centred, inverse = self.centre(hidden), self.inverse(hidden)
        normed = self.gain * sides * inverse
        along = (centred * normed).mean(-1, keepdim=True) * inverse.square()
        # Centring is its own adjoint.
        return self.centre(normed) - centred * along

    def scaled(self, matrix: Tensor) -> Tensor:
        """A matrix ``[d, n]`` in front of the norm with the gain on its rows."""
        return matrix if self.gain is None else self.gain[:, None] * matrix

    def column_changes(self, hidden: Tensor, inputs: Tensor, matrix: Tensor) -> Tensor:
        """||N(z - x_j w_j) - N(z)||^2 of every token and column: ``[tokens, n]``.

        ``hidden`` is z, of which ``matrix`` ``[d, n]`` made a part from ``inputs`` ``[tokens, n]``.
        With u = z - x_j w_j and i one over a root mean square this is
        (i_u - i_z)^2 |g z|^2 - 2 x_j i_u (i_u - i_z) (g^2 z . w_j) + x_j^2 i_u^2 |g w_j|^2.
        """
        if self.gain is None:
            return inputs.square() * matrix.square().sum(0)
        z, columns = self.centre(hidden), self.centre(matrix.mT).mT
        gained, squares = z * self.gain.square(), inputs.square()
        shift = (squares * columns.square().sum(0) - 2 * inputs * (z @ columns)) / len(matrix)
        before = self.inverse(hidden)
        # What stays of a mean square is none below zero but for rounding.
        after = (before.square().reciprocal() + shift).clamp_min(self.eps).rsqrt()
        # i_u - i_z without the difference of two numbers that are nearly the same.
        moved = -shift * (before * after).square() / (before + after)
        changes = moved.square() * (gained * z).sum(-1, keepdim=True)
        changes -= 2 * inputs * after * moved * (gained @ columns)
        changes += squares * after.square() * self.scaled(columns).square().sum(0)
        return changes.clamp_min_(0)


NO_NORM = RmsNorm()


def gain_of(weight: Tensor | None, kind: str, like: Tensor) -> Tensor:
    """What a norm multiplies by, from its weight and what that stands for; ones for none."""
    if weight is None:
        return torch.ones_like(like)
    return 1 + weight if kind == "one_plus_weight" else weight
