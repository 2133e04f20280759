"""Moments of one matrix's inputs: what every closed form is made of, for one block at a time.

Products of a micro-batch are taken in at least float32 and added up in float64, for the upper
triangle alone. They are never saved: with f = 11008 channels they are a gigabyte.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.artifacts.errors import InvalidInput
from bipline.compression.criteria.interface import widened

# Columns of H that are computed together: below a thousand of them a product is slower, and the
# triangle that is left out is coarser above.
TILE_COLUMNS = 1024
DOUBLE = 8
# Tokens for each column below which H is too near to singular to be trusted.
TOKENS_PER_COLUMN = 2


@dataclass(frozen=True)
class Moments:
    """Weighted means over tokens, float64: ``second`` = E[x x^T] ``[n, n]``, ``mean`` = E[x].

    ``drift`` = E[e x^T] ``[d, n]`` and ``drift_mean`` = E[e] ``[d]`` are of e, what the dense
    model's stream is ahead of this one after the whole matrix was applied; None where both
    streams are one.
    """

    second: Tensor
    mean: Tensor
    drift: Tensor | None
    drift_mean: Tensor | None
    tokens: int

    def centred(self) -> Moments:
        """Covariances in place of second moments: what a fit with intercept is made of."""
        drift = self.drift
        if drift is not None and self.drift_mean is not None:
            drift = drift - torch.outer(self.drift_mean, self.mean)
        second = self.second - torch.outer(self.mean, self.mean)
        return Moments(second, self.mean, drift, self.drift_mean, self.tokens)


class MomentSums:
    """Adds up moments over micro-batches: ``columns`` = n, ``outputs`` = d with a drift, else 0."""

    def __init__(self, columns: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._second, self._mean = zeros(columns, columns), zeros(columns)
        self._drift, self._drift_mean = zeros(outputs, columns), zeros(outputs)
        self._tokens = 0
        self._weight = zeros()

    def add(self, inputs: Tensor, weights: Tensor, drift: Tensor | None = None) -> None:
        """Add tokens: inputs ``[tokens, n]`` and their drift ``[tokens, d]`` where there is one.

        ``weights`` ``[tokens]`` say how much each token counts.
        """
        roots = widened(weights).sqrt()[:, None]
        x = widened(inputs) * roots
        for start in range(0, x.shape[1], TILE_COLUMNS):
            rows = slice(start, start + TILE_COLUMNS)
            self._second[rows, start:] += x[:, rows].T @ x[:, start:]
        self._mean += (roots.T @ x)[0]
        self._tokens += len(x)
        self._weight += roots.square().sum(dtype=torch.float64)
        if drift is not None:
            e = widened(drift) * roots
            self._drift += e.T @ x
            self._drift_mean += (roots.T @ e)[0]

    def moments(self, block: int = 0) -> Moments:
        """The means; the sums are used up. Raises InvalidInput where they are not finite."""
        second = self._second.triu_()
        second += second.triu(1).T
        if not bool(second.isfinite().all() and self._drift.isfinite().all()):
            raise InvalidInput(
                f"block {block}: activations are not finite; the weights hold NaN or infinity, "
                "or dtype overflows"
            )
        drifts = bool(self._drift.any() or self._drift_mean.any())
        return Moments(
            second.div_(self._weight),
            self._mean / self._weight,
            self._drift.div_(self._weight) if drifts else None,
            self._drift_mean / self._weight if drifts else None,
            self._tokens,
        )


def moments_bytes(columns: int, outputs: int) -> int:
    """Bytes of :class:`MomentSums` with n columns and d outputs (0 without a drift)."""
    return DOUBLE * (columns * columns + columns + outputs * columns + outputs + 1)


def check_tokens(tokens: int, columns: int, seqlen: int, share: float) -> None:
    """Raise InvalidInput for fewer fitted tokens than twice the columns.

    ``share`` is what part of the windows is fitted on; the message names the windows needed.
    """
    if tokens >= TOKENS_PER_COLUMN * columns:
        return
    least = TOKENS_PER_COLUMN * columns
    samples = -int(-least // (seqlen * share))
    raise InvalidInput(
        f"compensation fits {columns} columns on {tokens} tokens; it needs {least}, "
        f"so at least {samples} samples of seqlen {seqlen}"
    )
