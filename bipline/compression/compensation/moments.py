"""Moments of one matrix's inputs: what every closed form is made of, for one block at a time.

Products of a micro-batch are taken in at least float32. Those that become H are added up in
float64, for one triangle alone; those with the drift stay as they are, because no factorisation
rests on them. Sums and means share their memory, and nothing is ever saved: with f = 14336
channels it is two gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.compensation.triangles import DOUBLE, Triangles, triangles_bytes
from bipline.model.checkpoint import widened


@dataclass(frozen=True)
class Moments:
    """Weighted means over tokens: ``second`` = E[x x^T] ``[n, n]`` and ``mean`` = E[x], float64.

    ``drift`` = E[e x^T] ``[d, n]`` and ``drift_mean`` = E[e] ``[d]`` are of e, what the dense
    model's stream is ahead of this one after the whole matrix was applied; None where both
    streams are one. ``products`` is what products were taken in, and what solutions are held in.
    With ``centred``, ``second`` and ``drift`` are covariances: what a fit with intercept is of.
    """

    second: Triangles
    mean: Tensor
    drift: Tensor | None
    drift_mean: Tensor | None
    tokens: int
    products: torch.dtype = torch.float64
    centred: bool = False

    def add_means(self, factor: float) -> None:
        """Add the means' products times ``factor``, in place: -1 centres, 1 takes it back."""
        self.second.add_outer(self.mean, factor)
        if self.drift is not None and self.drift_mean is not None:
            means = self.drift_mean.to(self.drift), self.mean.to(self.drift)
            self.drift.addr_(*means, alpha=factor)


class MomentSums:
    """Adds up moments over micro-batches: ``columns`` = n, ``outputs`` = d with a drift, else 0.

    ``products`` is the dtype that products are taken in, float32 or float64.
    """

    def __init__(
        self,
        columns: int,
        outputs: int,
        device: torch.device,
        products: torch.dtype = torch.float64,
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._second, self._mean = Triangles(columns, device), zeros(columns)
        self._drift = torch.zeros(outputs, columns, dtype=products, device=device)
        self._drift_mean = zeros(outputs)
        self._tokens = 0
        self._weight = zeros()
        self._given: Moments | None = None

    def add(self, inputs: Tensor, weights: Tensor, drift: Tensor | None = None) -> None:
        """Add tokens: inputs ``[tokens, n]`` and their drift ``[tokens, d]`` where there is one.

        ``weights`` ``[tokens]`` say how much each token counts. Moments given before are used up.
        """
        self._take_back()
        roots = widened(weights).sqrt()[:, None]
        x = widened(inputs) * roots
        self._second.add_product(x)
        self._mean += (roots.T @ x)[0]
        self._tokens += len(x)
        self._weight += roots.square().sum(dtype=torch.float64)
        if drift is not None:
            e = widened(drift) * roots
            self._drift.addmm_(e.T, x)
            self._drift_mean += (roots.T @ e)[0]

    def moments(self, block: int = 0, centred: bool = False) -> Moments:
        """The means of what was added so far, in the sums' memory: valid until more is added.

        Raises InvalidInput where they are not finite.
        """
        if self._given and self._given.centred == centred:
            return self._given
        self._take_back()
        if not (self._second.is_finite() and bool(self._drift.isfinite().all())):
            raise InvalidInput(
                f"block {block}: activations are not finite; the weights hold NaN or infinity, "
                "or dtype overflows"
            )
        drifts = bool(self._drift.any() or self._drift_mean.any())
        self._second.divide(self._weight)
        self._given = Moments(
            self._second,
            self._mean / self._weight,
            self._drift.div_(self._weight) if drifts else None,
            self._drift_mean / self._weight if drifts else None,
            self._tokens,
            self._drift.dtype,
            centred,
        )
        if centred:
            self._given.add_means(-1.0)
        return self._given

    def _take_back(self) -> None:
        """Make sums of the means that were given."""
        given, self._given = self._given, None
        if given is None:
            return
        if given.centred:
            given.add_means(1.0)
        self._second.divide(self._weight.reciprocal())
        if given.drift is not None:
            self._drift.mul_(self._weight)


def moments_bytes(columns: int, outputs: int, product_bytes: int = DOUBLE) -> int:
    """Bytes of :class:`MomentSums` with n columns and d outputs (0 without a drift).

    ``product_bytes`` is what one number of the products takes.
    """
    sums = DOUBLE * (columns + outputs + 1)
    return triangles_bytes(columns) + product_bytes * outputs * columns + sums
