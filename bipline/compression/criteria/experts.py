"""The experts of a block one by one, however their class holds them.

Most lie as matrices of all experts that are multiplied from the left, gate over up; those of
gpt-oss from the right, with gate and up in turn, and have biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from bipline.compression.criteria.interface import Block, Tokens
from bipline.model.experts import DOWN, GATE_UP, in_turn


@dataclass(frozen=True)
class Experts:
    """The experts of one block; weights as their class has them."""

    block: Block

    def __len__(self) -> int:
        return self.block.shape.num_experts

    def down(self, expert: int) -> Tensor:
        """down_proj of one, ``[d, f]``."""
        matrix = self.block.weights[DOWN][expert]
        return matrix.T if self.block.transposed_experts else matrix

    def gate_up(self, expert: int) -> tuple[Tensor, Tensor]:
        """gate_proj and up_proj of one, ``[f, d]`` each."""
        matrix = self.block.weights[GATE_UP][expert]
        if self.block.transposed_experts:
            gate, up = in_turn(matrix)
            return gate.T, up.T
        gate, up = matrix.chunk(2)
        return gate, up

    def gated(self, expert: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What gate and up of one make of ``[t, d]``: ``[t, f]`` each."""
        matrix = self.block.weights[GATE_UP][expert]
        if not self.block.transposed_experts:
            gate, up = linear(hidden, matrix).chunk(2, dim=-1)
            return gate, up
        found = hidden @ matrix + self.block.weights[f"{GATE_UP}_bias"][expert]
        return in_turn(found)

    def output(self, expert: int, inner: Tensor) -> Tensor:
        """What one adds to the stream, from what enters its down_proj ``[t, f]``."""
        if not self.block.transposed_experts:
            return linear(inner, self.block.weights[DOWN][expert])
        return inner @ self.block.weights[DOWN][expert] + self.block.weights[f"{DOWN}_bias"][expert]

    def routed(self, tokens: Tokens) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Experts that saw tokens: number, the router's weights ``[t]`` float64, gate and up.

        These ``[t, f]`` are of the computing dtype.
        """
        hidden = tokens["expert_input"]
        chosen, weights = tokens["expert_index"], tokens["expert_weights"]
        for expert in chosen.unique().tolist():
            rows, places = torch.where(chosen == expert)
            yield expert, weights[rows, places].double(), *self.gated(expert, hidden[rows])
