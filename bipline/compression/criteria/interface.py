"""What a criterion sees of a block, and the sums most criteria share.

Shapes: hidden_size d, intermediate_size f, attention width a = num_attention_heads * head_dim.
An attention group's channels are consecutive in the attention width, because query heads that
share a KV head are consecutive in transformers' layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.model.block_loop import Activations
from bipline.model.families import ModelShape

Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Block:
    """One block as criteria see it: its place, its sizes, its weights by transformers' names."""

    index: int
    shape: ModelShape
    weights: dict[str, Tensor]

    def weight(self, name: str) -> Tensor:
        """A weight in float32, so that bfloat16 sources do not round the scores."""
        return widened(self.weights[name])


@dataclass(frozen=True)
class BlockScores:
    """Importance per attention group ``[num_key_value_heads]`` and per channel ``[f]``."""

    attention_groups: Tensor
    ffn_channels: Tensor


@dataclass(frozen=True)
class Options:
    """What a criterion may be told besides the sums. ``seed`` is for drawn scores."""

    seed: int = 0


def second_moments(activations: Activations) -> Sums:
    """Tokens seen, and sums of squares of the inputs of o_proj ``[a]`` and down_proj ``[f]``."""
    attention, ffn = activations["attention_output"], activations["ffn_activation"]
    return {
        "tokens": torch.tensor(float(len(ffn)), dtype=torch.float64),
        "attention_output_squares": sum_of_squares(attention),
        "ffn_activation_squares": sum_of_squares(ffn),
    }


def sum_of_squares(values: Tensor) -> Tensor:
    """Sum over tokens of squares, accumulated in float64: ``[tokens, width] -> [width]``."""
    return widened(values).square().sum(0, dtype=torch.float64)


def root_mean_square(squares: Tensor, tokens: Tensor) -> Tensor:
    """From a sum of squares over tokens to the root of their mean."""
    return (squares / tokens).sqrt()


def absolute_product(matrix: Tensor, vector: Tensor) -> Tensor:
    """|W| v in the weight's precision, returned in float64: bounds are products of these."""
    return (matrix.abs() @ vector.to(matrix.dtype)).double()


def group_sums(channels: Tensor, shape: ModelShape) -> Tensor:
    """Add the scores of each attention group's channels: ``[a] -> [num_key_value_heads]``.

    By the triangle inequality the sum bounds what removing the channels together does.
    """
    return channels.view(shape.num_key_value_heads, -1).sum(1)


def widened(values: Tensor) -> Tensor:
    """At least float32: products of bfloat16 activations would be rounded before they count."""
    return values if values.dtype == torch.float64 else values.float()
