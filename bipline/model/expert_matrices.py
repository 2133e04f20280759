"""The matrices of a block's experts one by one, however their class holds them.

Most lie as matrices of all experts that are multiplied from the left, gate over up; those of
gpt-oss from the right, with gate and up in turn, and have biases.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear

from bipline.model.experts import DOWN, GATE_UP, in_turn


class ExpertMatrices:
    """The experts of one block; weights as their class has them, by their names in the block."""

    def __init__(self, weights: Mapping[str, Tensor], transposed: bool) -> None:
        self.weights, self.transposed = weights, transposed

    def __len__(self) -> int:
        return len(self.weights[DOWN])

    def down(self, expert: int) -> Tensor:
        """down_proj of one, ``[d, f]``."""
        matrix = self.weights[DOWN][expert]
        return matrix.T if self.transposed else matrix

    def gate_up(self, expert: int) -> tuple[Tensor, Tensor]:
        """gate_proj and up_proj of one, ``[f, d]`` each."""
        matrix = self.weights[GATE_UP][expert]
        if self.transposed:
            gate, up = in_turn(matrix)
            return gate.T, up.T
        gate, up = matrix.chunk(2)
        return gate, up

    def gated(self, expert: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What gate and up of one make of ``[t, d]``: ``[t, f]`` each."""
        matrix = self.weights[GATE_UP][expert]
        if not self.transposed:
            gate, up = linear(hidden, matrix).chunk(2, dim=-1)
            return gate, up
        found = hidden @ matrix + self.weights[f"{GATE_UP}_bias"][expert]
        return in_turn(found)

    def output(self, expert: int, inner: Tensor) -> Tensor:
        """What one adds to the stream, from what enters its down_proj ``[t, f]``."""
        if not self.transposed:
            return linear(inner, self.weights[DOWN][expert])
        return inner @ self.weights[DOWN][expert] + self.weights[f"{DOWN}_bias"][expert]
