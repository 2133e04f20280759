"""Kept rows: up_proj and v_proj of what stays take over from what is gone.

Behind gates that stay as they are an FFN is linear in up_proj, and behind attention weights that
stay as they are attention is linear in v_proj. So their rows can be fitted by least squares, as
the columns of down_proj and o_proj are:

D   argmin  sum_t w_t |e_t - f_t(D)|^2 + lambda |D|^2
f   what the sublayer gives with D in the place of these rows, and no biases:
    W_down (act(gate) * D n), or W_o of the values D n mixed by the attention weights
n   what the rows read in the pruned stream, behind the norm
e   what the corrected sublayer still leaves of the dense model's stream
w   a token's weight (see token_weights)

The columns are fitted again behind the new rows: a sweep of alternating least squares over both
matrices. The smaller model has not one weight more (ours). D has so many unknowns that no matrix
of them can be made; conjugate gradients need its products alone, and these are passes over the
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bipline.compression.compensation.closed_forms import ROWS_TOGETHER
from bipline.compression.compensation.collecting import token_weights
from bipline.compression.compensation.conjugate_gradients import conjugate_gradients
from bipline.compression.compensation.moments import MomentSums
from bipline.compression.compensation.triangles import Triangles
from bipline.model.halves import DOWN_PROJ, O_PROJ, UP_PROJ, V_PROJ, Halves

# Whose rows are fitted, by the matrix whose columns were.
ROWS_OF = {O_PROJ: V_PROJ, DOWN_PROJ: UP_PROJ}

# What enters the sublayer in the pruned stream and what the dense stream is behind it,
# ``[windows, seqlen, hidden_size]`` each: all tokens, anew at every call.
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def fitted_rows(pruned: Halves, columns: str, batches: Batches, ridge: float, steps: int) -> Tensor:
    """D ``[rows, hidden_size]`` for the rows behind the matrix ``columns``, o_proj or down_proj.

    ``pruned`` is the block as corrected so far. ``ridge`` is lambda as a share of the mean
    diagonal of what the squares are in D; ``steps`` those of conjugate gradients.
    """
    return _Problem(pruned, columns, batches).solve(ridge, steps)


class _Problem:
    """The squares' products with a D, computed anew from the tokens every time."""

    def __init__(self, pruned: Halves, columns: str, batches: Batches) -> None:
        self._pruned, self._columns, self._batches = pruned, columns, batches
        self._name = f"{ROWS_OF[columns]}.weight"
        self._rows = pruned.weights[self._name]
        self._products = torch.promote_types(self._rows.dtype, torch.float32)
        self._head_dim = pruned.head_dim
        biases = {f"{ROWS_OF[columns]}.bias", f"{columns}.bias"}
        self._unbiased = {
            name: torch.zeros_like(weight) if name in biases else weight
            for name, weight in pruned.weights.items()
        }

    def solve(self, ridge: float, steps: int) -> Tensor:
        """The rows after so many steps, in the dtype that products are taken in."""
        right, scales, inputs = self._first_pass()
        mean_square, mean_scale = float(inputs.diagonal.mean()), float(scales.mean())
        inputs.factor(ridge * mean_square)
        lifted = (scales + ridge * mean_scale).reciprocal()[:, None].to(right)

        def precondition(sides: Tensor) -> Tensor:
            result = sides * lifted
            for few in result.split(ROWS_TOGETHER):
                inputs.solve_(few)
            return result

        def apply(direction: Tensor) -> Tensor:
            return self._applied(direction).add_(direction, alpha=ridge * mean_square * mean_scale)

        return conjugate_gradients(right, apply, precondition, steps)

    def _first_pass(self) -> tuple[Tensor, Tensor, Triangles]:
        """The right side, what every row has of the diagonal, and the moments of n."""
        right, scales = self._zeros(), self._rows.new_zeros(len(self._rows), dtype=torch.float64)
        sums = MomentSums(self._rows.shape[1], 0, self._rows.device, self._products)
        for entering, target in self._batches():
            weights = self._weights(target)
            left = target - entering - self._given(self._pruned, entering)
            right += self._pulled(self._rows, entering, weights, left)
            sums.add(self._read(entering).flatten(0, 1), weights.flatten())
            scales += self._scales(entering, weights)
        return right, scales, sums.moments(self._pruned.index).second

    def _applied(self, direction: Tensor) -> Tensor:
        """The second derivative of half the squares, applied to a D."""
        total = self._zeros()
        for entering, target in self._batches():
            weights = self._weights(target)
            total += self._pulled(direction, entering, weights)
        return total

    def _pulled(
        self, rows: Tensor, entering: Tensor, weights: Tensor, left: Tensor | None = None
    ) -> Tensor:
        """What f's transpose makes, weighed, of ``left``, or of f of these rows without it."""
        with torch.enable_grad():
            rows = rows.to(self._rows.dtype).detach().requires_grad_()
            linear = self._pruned.changed({**self._unbiased, self._name: rows})
            given = self._given(linear, entering)
            side = weights * (given.detach() if left is None else left)
            [gradient] = torch.autograd.grad(given, rows, side)
        return gradient.to(self._products)

    def _scales(self, entering: Tensor, weights: Tensor) -> Tensor:
        """Squares of what a row's output is multiplied with, over all tokens, ``[rows]``."""
        columns = self._pruned.weights[f"{self._columns}.weight"]
        squares = columns.square().sum(0, dtype=torch.float64)
        if self._columns == O_PROJ:
            # A row of v_proj is mixed by attention weights, and read by every query of its group.
            heads = squares.view(-1, len(squares) // len(self._rows), self._head_dim)
            return heads.sum(1).flatten() * weights.sum(dtype=torch.float64)
        gate, _ = self._pruned.gate_and_up(entering)
        gates = self._pruned.activation(gate, weights.sqrt()).flatten(0, 1)
        return squares * gates.square().sum(0, dtype=torch.float64)

    def _given(self, halves: Halves, entering: Tensor) -> Tensor:
        """What the sublayer adds to the stream."""
        return halves.project(self._columns, halves.matrix_inputs(self._columns, entering))

    def _read(self, entering: Tensor) -> Tensor:
        """n, like ``entering``."""
        attention = self._columns == O_PROJ
        halves = self._pruned
        return halves.attention_input(entering) if attention else halves.ffn_input(entering)

    def _weights(self, target: Tensor) -> Tensor:
        """Of every token, ``[windows, seqlen, 1]``."""
        flat = token_weights(target.flatten(0, 1), self._pruned.rms_norm_eps)
        return flat.view(*target.shape[:2], 1).to(target)

    def _zeros(self) -> Tensor:
        return torch.zeros_like(self._rows, dtype=self._products)
