"""Norms behind sublayers: what a fit of the matrix in front of one is towards, and how it weighs.

The sublayer adds N(z), z = W x, N(z) = g * z / r. Least squares is of z, where it is linear: what
goes of W x is regressed on what stays, as without a norm. What the stream is ahead by is taken back
in front of the norm with r held, and where g is next to nothing it is no use asking for more:

e    = (target - N(z)) * r * g / (g^2 + LEAST_GAIN * mean g^2)
w_t  = that of the stream over r^2,   D = that of the stream times g^2

Whatever is fitted is measured behind the norm, as the model has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.compression.criteria.norms import RmsNorm

LEAST_GAIN = 1e-2


def drift_of(norm: RmsNorm, projected: Tensor, ahead: Tensor) -> Tensor:
    """How much more should enter a norm for the sublayer to add ``ahead`` more: ``[tokens, d]``.

    ``projected`` is what enters. Without a norm it is as much as in the stream.
    """
    if norm.gain is None:
        return ahead
    squares = norm.gain.square()
    share = norm.gain / (squares + LEAST_GAIN * squares.mean())
    return ahead * share / norm.inverse(projected)


def weights_of(norm: RmsNorm, projected: Tensor, weights: Tensor) -> Tensor:
    """What tokens count ``[tokens]`` in front of a norm, from what they count in the stream."""
    return weights * norm.inverse(projected)[:, 0].square()


def importance_of(norm: RmsNorm, importance: Tensor | None) -> Tensor | None:
    """The diagonal of D ``[d]`` in front of a norm, from that in the stream; None for ones."""
    if norm.gain is None:
        return importance
    squares = norm.gain.double().square()
    return squares if importance is None else importance * squares.to(importance.device)


class HeadShares:
    """What each group's queries and keys are of the mean square that a norm over all heads has.

    A norm over fewer heads divides by another root mean square, token by token. One factor on its
    gain keeps the mean square of what it gives: c^2 = mean over tokens of (r of those that stay)^2
    / (r of all)^2, which is the mean of these shares over the groups that stay. Where query heads
    go it is over theirs, and keys stay as they are. Ours.
    """

    NORMS = ("q_norm", "k_norm")

    def __init__(self, queries: int, keys: int | None, eps: float) -> None:
        """Queries and keys are looked at in so many parts; None where all keys stay."""
        self._eps, self._tokens = eps, 0
        parts = zip(self.NORMS, (queries, keys), strict=True)
        self._sums = {name: torch.zeros(n, dtype=torch.float64) for name, n in parts if n}

    def add(self, queries: Tensor, keys: Tensor) -> None:
        """Add tokens: what enters both norms, ``[tokens, heads * head_dim]`` each."""
        self._tokens += len(queries)
        for sums, values in zip(self._sums.values(), (queries, keys), strict=False):
            squares = values.float().square().unflatten(-1, (len(sums), -1)).mean(-1)
            shares = squares / (squares.mean(-1, keepdim=True) + self._eps)
            sums += shares.sum(0, dtype=torch.float64).cpu()

    def factors(self, kept: tuple[int, ...]) -> dict[str, float]:
        """c of each norm where these groups, or query heads, stay."""
        return dict.fromkeys(self.NORMS, 1.0) | {
            name: float((shares[list(kept)].mean() / self._tokens).sqrt())
            for name, shares in self._sums.items()
        }
