"""The closed forms: what is added to the weights that stay, from the moments of their inputs.

Least squares is anchored at the ORIGINAL kept weights: the ridge pulls the correction towards
zero, not the weights. Solves are float64 Cholesky, with jitter where a matrix has lost rank.

Shapes: W ``[d, n]``, kept columns S ``[s]``, pruned columns P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.compression.compensation.moments import Moments

# What is added to a diagonal that a Cholesky factorisation failed on, as a share of its mean.
FIRST_JITTER = 1e-12


@dataclass(frozen=True)
class Correction:
    """What is added to the kept columns and to the bias: ``[d, s]`` and ``[d]``."""

    weight: Tensor
    bias: Tensor

    def blend(self, other: Correction | None, share: float) -> Correction:
        """This plus a share of another."""
        if other is None or share == 0:
            return self
        return Correction(self.weight + share * other.weight, self.bias + share * other.bias)


def ridge_term(second: Tensor, ridge: float) -> float:
    """lambda = ridge * mean(diag H)."""
    return ridge * float(second.diagonal().mean())


def factor(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a symmetric matrix, with the least jitter that makes it one."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    jitter = FIRST_JITTER * (float(matrix.diagonal().mean()) or 1.0)
    while bool(failed):
        lifted = matrix.clone()
        lifted.diagonal().add_(jitter)
        lower, failed = torch.linalg.cholesky_ex(lifted)
        jitter *= 10
    return lower


def bias_correction(
    weight: Tensor, moments: Moments, kept: Tensor, pruned: Tensor
) -> tuple[Correction, Correction | None]:
    """The mean of what is gone, W_P mu_P, and that of the drift, as corrections of the bias.

    (FLAP, arXiv 2312.11983.) The kept weights stay as they are.
    """
    unchanged = torch.zeros_like(weight[:, kept])
    own = Correction(unchanged, weight[:, pruned] @ moments.mean[pruned])
    if moments.drift_mean is None:
        return own, None
    return own, Correction(unchanged, moments.drift_mean)


class LeastSquares:
    """Regression of what a matrix gave on the columns that stay.

    own    W_P H_PS (H_SS + lambda I)^-1                      (methods 5.2)
    drift  E[e x_S^T] (H_SS + lambda I)^-1                    (methods 5.5; e as in Moments)

    own + beta * drift is beta times the error-aware weights plus 1 - beta times those of 5.2.
    With ``intercept`` the moments are centred and the bias takes what the means leave.
    """

    def __init__(
        self, weight: Tensor, moments: Moments, kept: Tensor, pruned: Tensor, intercept: bool
    ) -> None:
        used = moments.centred() if intercept else moments
        self._moments, self._kept, self._intercept = moments, kept, intercept
        self._second = used.second[kept][:, kept]
        self._diagonal = float(used.second.diagonal().mean())
        self._sides = [weight[:, pruned] @ used.second[pruned][:, kept]]
        self._means = [weight[:, pruned] @ moments.mean[pruned]]
        if used.drift is not None and used.drift_mean is not None:
            self._sides.append(used.drift[:, kept])
            self._means.append(used.drift_mean)

    def solve(self, ridge: float) -> tuple[Correction, Correction | None]:
        """Corrections of what is gone and, where there is one, of the drift."""
        regular = self._second.clone()
        regular.diagonal().add_(ridge * self._diagonal)
        lower = factor(regular)
        solved = [self._correction(lower, *pair) for pair in zip(self._sides, self._means)]  # noqa: B905
        return solved[0], solved[1] if len(solved) > 1 else None

    def _correction(self, lower: Tensor, side: Tensor, mean: Tensor) -> Correction:
        weight = torch.cholesky_solve(side.T, lower).T
        if not self._intercept:
            return Correction(weight, torch.zeros_like(mean))
        return Correction(weight, mean - weight @ self._moments.mean[self._kept])
