"""Kept rows: up_proj, v_proj and gate_proj of what stays take over from what is gone.

Behind gates that stay as they are an FFN is linear in up_proj, and behind attention weights that
stay as they are attention is linear in v_proj. So their rows can be fitted by least squares, as
the columns of down_proj and o_proj are:

D   argmin  sum_t w_t |e_t - f_t(D)|^2 + lambda |D|^2
f   what the sublayer gives with D in the place of these rows, and no biases:
    W_down (act(gate) * D n), or W_o of the values D n mixed by the attention weights
n   what the rows read in the pruned stream, behind the norm
e   what the corrected sublayer still leaves of the dense model's stream
w   a token's weight (see token_weights)

In what its activation reads, gate_proj or an up_proj without a gate, an FFN is linear for small
changes alone. There f is what the derivative makes of D, and the squares that decide how many steps
are taken go through the activation itself.

The columns are fitted again behind the new rows: a sweep of alternating least squares over both
matrices. The smaller model has not one weight more (ours). D has so many unknowns that no matrix
of them can be made; conjugate gradients need its products alone, and these are sums over the
tokens of products that are written out (:mod:`.row_maps`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from bipline.compression.compensation.closed_forms import ROWS_TOGETHER
from bipline.compression.compensation.collecting import token_weights
from bipline.compression.compensation.conjugate_gradients import conjugate_gradients
from bipline.compression.compensation.moments import MomentSums
from bipline.compression.compensation.row_maps import row_map
from bipline.compression.compensation.streams import Batch, Batches
from bipline.compression.compensation.triangles import Triangles
from bipline.model.devices import multiplies_bfloat16
from bipline.model.halves import DOWN_PROJ, GATE_PROJ, O_PROJ, UP_PROJ, V_PROJ, Halves

# The matrix whose columns read what rows put out.
READER_OF = {V_PROJ: O_PROJ, UP_PROJ: DOWN_PROJ, GATE_PROJ: DOWN_PROJ}


def fitted_rows(
    pruned: Halves,
    rows: str,
    batches: Batches,
    ridge: float,
    steps: int,
    room: float = math.inf,
    held_out: Batches | None = None,
) -> Tensor:
    """D ``[rows, hidden_size]`` for the ``rows`` of v_proj, up_proj or gate_proj.

    ``pruned`` is the block as corrected so far. ``ridge`` is lambda as a share of the mean
    diagonal of what the squares are in D; ``steps`` those of conjugate gradients, fewer where the
    squares on ``held_out`` no longer fall. What does not change between steps is held within
    ``room`` bytes and made again beyond; the rows are the same.
    """
    return _Problem(pruned, rows, batches, room).solve(ridge, steps, held_out)


@dataclass(frozen=True)
class _Part:
    """What no rows change of a micro-batch: n, and what their outputs are multiplied with."""

    read: Tensor
    factors: Tensor

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self.read.nbytes + self.factors.nbytes

    def to(self, dtype: torch.dtype) -> _Part:
        """The same in another dtype."""
        return _Part(self.read.to(dtype), self.factors.to(dtype))


def quickest(rows: Tensor) -> torch.dtype:
    """The dtype of a step's products: bfloat16 for float32 where a processor multiplies it itself.

    There its products are several times as quick. What is summed over tokens stays in float32, and
    a direction that is off by a thousandth is as good a direction.
    """
    able = rows.device.type == "cpu" and rows.dtype == torch.float32
    return torch.bfloat16 if able and multiplies_bfloat16() else rows.dtype


class _Problem:
    """The squares' products with a D, from parts that are held as far as there is room."""

    def __init__(self, pruned: Halves, rows: str, batches: Batches, room: float) -> None:
        self._pruned, self._name, self._batches = pruned, rows, batches
        self._rows = pruned.weights[f"{rows}.weight"]
        self._matrix = pruned.weights[f"{READER_OF[rows]}.weight"]
        self._products = torch.promote_types(self._rows.dtype, torch.float32)
        self._quick = quickest(self._rows)
        self._quick_matrix = self._matrix.to(self._quick)
        self._map, self._room = row_map(pruned, rows), room
        self._held: list[_Part] = []

    def solve(self, ridge: float, steps: int, held_out: Batches | None) -> Tensor:
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

        error = partial(self._squares, held_out) if held_out else None
        return conjugate_gradients(right, apply, precondition, steps, error)

    def _squares(self, held_out: Batches, change: Tensor) -> float:
        """What the squares are with a D on windows that it was not fitted on."""
        total, rows = 0.0, self._rows + change.to(self._rows)
        for batch in held_out(0):
            weights = self._weights(batch.target)
            part = self._part(batch.reads, weights)
            left = self._left(part, batch, weights.sqrt(), rows)
            total += float(left.square().sum(dtype=torch.float64))
        return total

    def _first_pass(self) -> tuple[Tensor, Tensor, Triangles]:
        """The right side, what every row has of the diagonal, and the moments of n."""
        right, scales = self._zeros(), self._rows.new_zeros(len(self._rows), dtype=torch.float64)
        sums = MomentSums(self._rows.shape[1], 0, self._rows.device, self._products)
        for batch in self._batches(0):
            weights = self._weights(batch.target)
            part = self._part(batch.reads, weights)
            left = self._left(part, batch, weights.sqrt(), self._rows)
            sums.add(part.read.flatten(0, 1), weights.flatten())
            scales += self._scales(part, weights)
            part = part.to(self._quick)
            right += self._pulled(part, left.to(self._quick))
            self._hold(part)
        return right, scales, sums.moments(self._pruned.index).second

    def _applied(self, direction: Tensor) -> Tensor:
        """The second derivative of half the squares, applied to a D."""
        total, rows = self._zeros(), direction.to(self._quick)
        for part in self._parts():
            inputs = self._map.inputs(part.factors, linear(part.read, rows))
            total += self._pulled(part, linear(inputs, self._quick_matrix))
        return total

    def _parts(self) -> Iterator[_Part]:
        """Those that are held, and the others made again."""
        yield from self._held
        for batch in self._batches(len(self._held)):
            yield self._part(batch.reads, self._weights(batch.target)).to(self._quick)

    def _part(self, entering: Tensor, weights: Tensor) -> _Part:
        halves = self._pruned
        attention = self._name == V_PROJ
        read = halves.attention_input(entering) if attention else halves.ffn_input(entering)
        return _Part(read, self._map.factors(read, weights.sqrt()))

    def _hold(self, part: _Part) -> None:
        """Keep a part for the steps, and none behind one that there was no room for."""
        self._room -= part.num_bytes
        if self._room >= 0:
            self._held.append(part)

    def _pulled(self, part: _Part, side: Tensor) -> Tensor:
        """What f's transpose makes of a side ``[windows, seqlen, hidden_size]``."""
        outputs = self._map.outputs(part.factors, linear(side, self._quick_matrix.T))
        return (outputs.flatten(0, 1).T @ part.read.flatten(0, 1)).to(self._products)

    def _left(self, part: _Part, batch: Batch, roots: Tensor, rows: Tensor) -> Tensor:
        """e with these rows, weighed."""
        biases = self._pruned.weights
        outputs = linear(part.read, rows, biases.get(f"{self._name}.bias"))
        given = linear(self._map.present(part.read, roots, part.factors, outputs), self._matrix)
        left = batch.target - batch.adds_to
        if (bias := biases.get(f"{READER_OF[self._name]}.bias")) is not None:
            left -= bias
        return left.mul_(roots).sub_(given)

    def _scales(self, part: _Part, weights: Tensor) -> Tensor:
        """Squares of what a row's output is multiplied with, over all tokens, ``[rows]``."""
        squares = self._matrix.square().sum(0, dtype=torch.float64)
        if (gates := self._map.squares(part.factors)) is not None:
            return squares * gates
        # A row of v_proj is mixed by attention weights, and read by every query of its group.
        heads = squares.view(-1, len(squares) // len(self._rows), self._pruned.head_dim)
        return heads.sum(1).flatten() * weights.sum(dtype=torch.float64)

    def _weights(self, target: Tensor) -> Tensor:
        """Of every token, ``[windows, seqlen, 1]``."""
        flat = token_weights(target.flatten(0, 1), self._pruned.rms_norm_eps)
        return flat.view(*target.shape[:2], 1).to(target)

    def _zeros(self) -> Tensor:
        return torch.zeros_like(self._rows, dtype=self._products)
