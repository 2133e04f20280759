"""What a criterion sees of a block, and the sums most criteria share.

Shapes: hidden_size d, intermediate_size f, attention width a = num_attention_heads * head_dim.
An attention group's channels are consecutive in the attention width, because query heads that
share a KV head are consecutive in transformers' layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.model.block_loop import Activations
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import ModelShape

Sums = dict[str, Tensor]
# 128 rows of a 7B model's widest activation in float32 are 5.6 MB.
TILE_ROWS = 128
# transformers' default where a config names none.
DEFAULT_EPS = 1e-6


@dataclass(frozen=True)
class Block:
    """One block as criteria see it: its place, its sizes, its weights by transformers' names."""

    index: int
    shape: ModelShape
    weights: dict[str, Tensor]
    rms_norm_eps: float = DEFAULT_EPS

    @classmethod
    def of(cls, checkpoint: Checkpoint, index: int, weights: dict[str, Tensor]) -> Block:
        """A block of a checkpoint with these weights."""
        eps = float(checkpoint.config.get("rms_norm_eps", DEFAULT_EPS))
        return cls(index, checkpoint.shape, weights, eps)


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
    """Sum over rows of squares, ``[rows, width] -> [width]`` in float64.

    Inside a tile the sum is a product with ones in at least float32; tiles add up in float64.
    """
    total = values.new_zeros(values.shape[1], dtype=torch.float64)
    for tile in tiles(values):
        total += column_sums(tile.square())
    return total


def column_norms(matrix: Tensor) -> Tensor:
    """L2 norms of the columns, in float64: ``[rows, columns] -> [columns]``."""
    return sum_of_squares(matrix).sqrt()


def tiles(values: Tensor) -> Iterator[Tensor]:
    """Rows in tiles of at least float32, small enough to stay in the processor's cache.

    Widening a whole block of bfloat16 first would move its bytes through memory many times.
    """
    for tile in values.split(TILE_ROWS):
        yield widened(tile)


def column_sums(tile: Tensor) -> Tensor:
    """Sums of a tile's columns as a matrix product, which is many times faster than sum(0)."""
    return (tile.new_ones(1, len(tile)) @ tile)[0].double()


def root_mean_square(squares: Tensor, tokens: Tensor) -> Tensor:
    """From a sum of squares over tokens to the root of their mean."""
    return (squares / tokens).sqrt()


def absolute_product(matrix: Tensor, vector: Tensor) -> Tensor:
    """|W|^T v in at least float32, added up over tiles in float64: bounds are made of these."""
    total = matrix.new_zeros(matrix.shape[1], dtype=torch.float64)
    for tile, part in zip(tiles(matrix), vector.split(TILE_ROWS), strict=True):
        total += (part.to(tile) @ tile.abs()).double()
    return total


def group_sums(channels: Tensor, shape: ModelShape) -> Tensor:
    """Add the scores of each attention group's channels: ``[a] -> [num_key_value_heads]``.

    By the triangle inequality the sum bounds what removing the channels together does.
    """
    return channels.view(shape.num_key_value_heads, -1).sum(1)


def widened(values: Tensor) -> Tensor:
    """At least float32: products of bfloat16 activations would be rounded before they count."""
    return values if values.dtype == torch.float64 else values.float()
