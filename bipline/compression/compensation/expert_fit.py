"""Experts that stay take over from what is gone: least squares of all their down_projs together.

The pruned block's router decides again, among the experts that stay. What the FFN then gives is
linear in its wide matrix, the columns of every expert's down_proj one after the other
(:mod:`bipline.model.mixture`), so

D        argmin  sum_t w_t |e_t - D x_t|^2 + lambda |D|^2
x        what enters the wide matrix in the pruned block: r a of the experts that a token passes
         through, 0 of all others, and what all tokens share
own      e is what the dense FFN gives on the same stream, less what the pruned one gives
drift    e is what the dense model's stream is ahead of the pruned one behind the dense FFN
w        a token's weight (see token_weights)

Both are fitted, and their D are blended as those of any down_proj are: own + beta * drift. lambda
is one number for all columns, a share of the mean diagonal: an expert that sees few tokens, or
with little weight, is held near its weights by it. All columns together are far too many for a
matrix of their moments, so the squares are applied, token by token and only where a token passes,
by conjugate gradients; each expert's own moments precondition them (ours).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.compensation.candidates import Sublayer, corrected
from bipline.compression.compensation.closed_forms import ROWS_TOGETHER, Correction
from bipline.compression.compensation.collecting import token_weights
from bipline.compression.compensation.conjugate_gradients import conjugate_gradients
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import Batch, Batches
from bipline.compression.compensation.trials import Trials
from bipline.compression.compensation.triangles import Triangles
from bipline.model.halves import Halves
from bipline.model.mixture import Part, product

# Steps of conjugate gradients: the held-out error of the solution falls little behind these.
STEPS = 12


def fit_experts(
    squares: ExpertSquares, sublayer: Sublayer, options: CompensationOptions, tried: Trials
) -> None:
    """Measure corrections of the wide matrix ``sublayer``: all shares of the drift, then ridges.

    All shares with the ridge next to the middle, the other ridges with the best one.
    """
    first, *others = sorted(options.ridge_factors, key=lambda each: abs(math.log(each)))
    ridge, drifts = options.ridge * first, squares.drift is not None
    own, drift = squares.solve(ridge)
    tried.measure(
        corrected(sublayer, "least-squares", sublayer.kept, own, drift, ridge, beta)
        for beta in (options.betas if drifts else (None,))
    )
    del own, drift  # before the next ones are solved for
    [beta] = tried.betas("least-squares", options) if drifts else (None,)
    for each in others:
        ridge = options.ridge * each
        whole = squares.blended(ridge, beta or 0.0)
        version = corrected(sublayer, "least-squares", sublayer.kept, whole, None, ridge)
        tried.measure([replace(version, beta=beta)])
        del whole, version


@dataclass(frozen=True)
class _Inputs:
    """What enters the wide matrix at a micro-batch, weighed by the roots of tokens' weights."""

    parts: list[Part]
    tokens: int

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return sum(part.inputs.nbytes + part.tokens.nbytes for part in self.parts)


class ExpertSquares:
    """The squares of a block's experts, from inputs that are held as far as there is room.

    ``pruned`` is the FFN of what stays with its weights as they are, ``dense`` the dense one;
    ``sequential``: whether there is a drift. ``room`` is in bytes; the solution does not depend on
    it. Raises InvalidInput where activations are not finite.
    """

    def __init__(
        self, pruned: Halves, dense: Halves, batches: Batches, sequential: bool,
        room: float = math.inf, steps: int = STEPS,
    ) -> None:  # fmt: skip
        self._pruned, self._batches, self._room, self._steps = pruned, batches, room, steps
        self._mixture, self._held = pruned.mixture, list[_Inputs]()
        columns, like = self._mixture.columns, next(iter(pruned.weights.values()))
        self._places = columns.places
        sizes = [place.stop - place.start for place in self._places]
        self._moments = [Triangles(size, like.device) for size in sizes]
        shape = (dense.hidden_size, columns.total)
        products = torch.promote_types(like.dtype, torch.float32)
        self._own = torch.zeros(shape, dtype=products, device=like.device)
        self.drift: Tensor | None = torch.zeros_like(self._own) if sequential else None
        self._add_up(dense)

    def solve(self, ridge: float) -> tuple[Correction, Correction | None]:
        """D of own and, where there is one, of the drift.

        ``ridge`` is lambda as a share of the mean diagonal of the squares.
        """
        own = self._solved(self._own, ridge)
        return own, None if self.drift is None else self._solved(self.drift, ridge)

    def blended(self, ridge: float, share: float) -> Correction:
        """D of own and a share of the drift together."""
        drift = self.drift
        right = self._own if drift is None else self._own + share * drift
        return self._solved(right, ridge)

    def _solved(self, right: Tensor, ridge: float) -> Correction:
        lift = ridge * self._mean_square()
        for moments in self._moments:
            moments.factor(lift)

        def apply(direction: Tensor) -> Tensor:
            return self._applied(direction).add_(direction, alpha=lift)

        weight = conjugate_gradients(right, apply, self._preconditioned, self._steps)
        return Correction(weight, weight.new_zeros(len(weight)))

    def _mean_square(self) -> float:
        diagonals = [moments.diagonal for moments in self._moments]
        return float(torch.cat(diagonals).mean())

    def _preconditioned(self, sides: Tensor) -> Tensor:
        """Times the inverse of each expert's own moments."""
        result = sides.clone()
        for place, moments in zip(self._places, self._moments, strict=True):
            for rows in result.split(ROWS_TOGETHER):
                moments.solve_(rows[:, place])
        return result

    def _applied(self, direction: Tensor) -> Tensor:
        """The second derivative of half the squares, applied to a D."""
        total = torch.zeros_like(direction)
        for inputs in self._inputs():
            given = product(inputs.parts, direction, inputs.tokens)
            _add(total, given, inputs.parts)
        return total

    def _inputs(self) -> Iterator[_Inputs]:
        """Those that are held, and the others made again."""
        yield from self._held
        for batch in self._batches(len(self._held)):
            yield self._weighed(batch)[0]

    def _weighed(self, batch: Batch) -> tuple[_Inputs, Tensor]:
        """Inputs at a micro-batch, and the roots of its tokens' weights ``[tokens, 1]``."""
        target = batch.target.flatten(0, 1)
        roots = token_weights(target, self._pruned.rms_norm_eps).sqrt()[:, None].to(self._own)
        hidden = self._pruned.ffn_input(batch.reads).flatten(0, 1)
        parts = [
            replace(part, inputs=part.inputs.to(self._own) * roots[part.tokens])
            for part in self._mixture.parts(hidden)
        ]
        return _Inputs(parts, len(hidden)), roots

    def _add_up(self, dense: Halves) -> None:
        """One pass over the batches: moments, and both sides."""
        for batch in self._batches(0):
            inputs, roots = self._weighed(batch)
            given, whole = (half.experts_output(batch.reads) for half in (self._pruned, dense))
            for part in inputs.parts:
                self._moments[self._places.index(part.place)].add_product(part.inputs)
            _add(self._own, (whole - given).flatten(0, 1) * roots, inputs.parts)
            if self.drift is not None:
                ahead = batch.target - (batch.adds_to + whole)
                _add(self.drift, ahead.flatten(0, 1) * roots, inputs.parts)
            self._hold(inputs)
        sides = [self._own] if self.drift is None else [self._own, self.drift]
        if not all(bool(side.isfinite().all()) for side in sides):
            raise InvalidInput(
                f"block {self._pruned.index}: activations are not finite; the weights hold NaN or "
                "infinity, or dtype overflows"
            )
        if self.drift is not None and not bool(self.drift.any()):
            self.drift = None  # both streams are one

    def _hold(self, inputs: _Inputs) -> None:
        """Keep inputs for the steps, and none behind those that there was no room for."""
        self._room -= inputs.num_bytes
        if self._room >= 0:
            self._held.append(inputs)


def _add(total: Tensor, given: Tensor, parts: Iterable[Part]) -> None:
    """Add the product of what is ``given`` ``[tokens, rows]`` and inputs to ``[rows, columns]``."""
    for part in parts:
        total[:, part.place].addmm_(given[part.tokens].T.to(total), part.inputs)
