"""The experts of a block as criteria see them: which tokens each saw, and with what weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bipline.compression.criteria.interface import Block, Tokens
from bipline.model.expert_matrices import ExpertMatrices


class Experts(ExpertMatrices):
    """The experts of one block; weights as their class has them."""

    def __init__(self, block: Block) -> None:
        super().__init__(block.weights, block.transposed_experts)

    def routed(self, tokens: Tokens) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Experts that saw tokens: number, the router's weights ``[t]`` float64, gate and up.

        These ``[t, f]`` are of the computing dtype.
        """
        hidden = tokens["expert_input"]
        chosen, weights = tokens["expert_index"], tokens["expert_weights"]
        for expert in chosen.unique().tolist():
            rows, places = torch.where(chosen == expert)
            yield expert, weights[rows, places].double(), *self.gated(expert, hidden[rows])
