"""The closed forms: what is added to the weights that stay, from the moments of their inputs.

Least squares is anchored at the ORIGINAL kept weights: the ridge pulls the correction towards
zero, not the weights. Factors are float64 Cholesky, with jitter where a matrix has lost rank; a
factor is applied in the dtype that the moments' products were taken in, which is that of W here.

Shapes: W ``[d, n]``, kept columns S ``[s]``, pruned columns P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.compression.compensation.moments import Moments
from bipline.compression.compensation.triangles import FIRST_JITTER, Triangles

# Outputs that are solved for together, and pruned columns that are read together.
ROWS_TOGETHER = 1024


@dataclass(frozen=True)
class Correction:
    """What is added to the kept columns and to the bias: ``[d, s]`` and ``[d]``."""

    weight: Tensor
    bias: Tensor

    def rows(self, rows: slice) -> Correction:
        """Those of some outputs."""
        return Correction(self.weight[rows], self.bias[rows])

    def blend(self, other: Correction | None, share: float) -> Correction:
        """This plus a share of another."""
        if other is None or share == 0:
            return self
        return Correction(self.weight + share * other.weight, self.bias + share * other.bias)


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
    unchanged = weight.new_zeros(1, 1).expand(len(weight), len(kept))
    own = Correction(unchanged, _mean_output(weight, moments, pruned))
    if moments.drift_mean is None:
        return own, None
    return own, Correction(unchanged, moments.drift_mean)


class LeastSquares:
    """Regression of what a matrix gave on the columns that stay.

    own    W_P H_PS (H_SS + lambda I)^-1                      (methods 5.2)
    drift  E[e x_S^T] (H_SS + lambda I)^-1                    (methods 5.5; e as in Moments)

    own + beta * drift is beta times the error-aware weights plus 1 - beta times those of 5.2.
    With centred moments the bias takes what the means leave. The moments stay as they are, but
    not the room beside their second ones. Column indices are ascending.
    """

    def __init__(self, weight: Tensor, moments: Moments, kept: Tensor, pruned: Tensor) -> None:
        self._moments, self._kept = moments, kept
        second = moments.second
        self._second = second.part(kept) if len(pruned) else second
        self._mean_square = float(second.diagonal.mean())
        self._side = _predicted_part(weight, second, kept, pruned) if len(pruned) else None
        self._unchanged = weight.new_zeros(1, 1).expand(len(weight), len(kept))
        self._mean = _mean_output(weight, moments, pruned)

    def solve(self, ridge: float) -> tuple[Correction, Correction | None]:
        """Corrections of what is gone and, where there is one, of the drift."""
        self._second.factor(ridge * self._mean_square)
        own, moments = self._unchanged, self._moments
        if self._side is not None:
            own = self._solved(self._side.clone())
        if moments.drift is None or moments.drift_mean is None:
            return self._correction(own, self._mean), None
        drift = self._solved(moments.drift[:, self._kept].to(own))
        return self._correction(own, self._mean), self._correction(drift, moments.drift_mean)

    def _solved(self, sides: Tensor) -> Tensor:
        for rows in sides.split(ROWS_TOGETHER):
            self._second.solve_(rows)
        return sides

    def _correction(self, weight: Tensor, mean: Tensor) -> Correction:
        if not self._moments.centred:
            return Correction(weight, torch.zeros_like(mean))
        there = self._moments.mean[self._kept].to(weight)
        return Correction(weight, mean - (weight @ there).to(mean))


def _predicted_part(weight: Tensor, second: Triangles, kept: Tensor, pruned: Tensor) -> Tensor:
    """W_P H_PS, ``[d, s]``."""
    side = weight.new_zeros(len(weight), len(kept))
    for gone in pruned.split(ROWS_TOGETHER):
        side.addmm_(weight[:, gone], second.rows(gone)[:, kept].to(weight))
    return side


def _mean_output(weight: Tensor, moments: Moments, columns: Tensor) -> Tensor:
    """What some columns give on average, float64 ``[d]``."""
    mean = moments.mean
    return (weight[:, columns] @ mean[columns].to(weight)).to(mean)
