"""A mask over ranked groups whose size is learned: BESA's distribution over candidate sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.model.families import ModelShape

# The first distribution is centred at the asked ratio, this wide.
SPREAD = 0.1


class SoftMask:
    """Keeps the highest-scored groups; how many is a distribution over the allowed counts."""

    def __init__(self, scores: Tensor, allowed: tuple[int, ...], ratio: float) -> None:
        self._size = len(scores)
        order = torch.sort(scores.double().cpu(), descending=True, stable=True).indices
        # The place of each group among all, from 0 for the highest: it stays while fewer go.
        self._places = torch.empty_like(order)
        self._places[order] = torch.arange(self._size)
        self._counts = torch.tensor(allowed, dtype=torch.float64)
        shares = 1 - self._counts / self._size
        logits = -((shares - ratio) ** 2) / (2 * SPREAD**2)
        self.movable = len(allowed) > 1
        self.logits = logits.clone().requires_grad_(self.movable)

    @classmethod
    def of(
        cls, scores: Tensor, allowed: tuple[int, ...], loss: float, shape: ModelShape
    ) -> SoftMask:
        """A mask that begins at the share of the block that is to go (``loss`` weights)."""
        return cls(scores, allowed, loss / shape.block_weights)

    @property
    def share(self) -> Tensor:
        """alpha: the expected share that goes, differentiable."""
        return (self.logits.softmax(0) * (1 - self._counts / self._size)).sum()

    @property
    def kept(self) -> float:
        """The expected number that stays."""
        return float((1 - self.share.detach()) * self._size)

    def factors(self) -> Tensor:
        """Straight-through mask ``[groups]``: hard in value, soft in gradient."""
        beta = self.logits.softmax(0)
        spared = self._places[:, None] < self._counts[None, :]
        keep = (spared * beta).sum(1)
        return self.hard(round(self.kept)) - keep.detach() + keep

    def hard(self, count: int) -> Tensor:
        """Ones for the ``count`` highest groups: ``[groups]`` in float64."""
        return (self._places < count).double()
