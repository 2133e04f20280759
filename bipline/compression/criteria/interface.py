"""What a criterion sees of a block, and the sums most criteria share.

Shapes: hidden_size d, intermediate_size f, attention width a = num_attention_heads * head_dim.
An attention group's channels are consecutive in the attention width, because query heads that
share a KV head are consecutive in transformers' layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bipline.compression.options import BaseOptions
from bipline.model.block_loop import Activations
from bipline.model.checkpoint import DEFAULT_ACT, DEFAULT_EPS, Checkpoint, widened
from bipline.model.families import RMS_NORM, ModelShape, Norm

Sums = dict[str, Tensor]
# What goes as a whole: groups and channels, whole blocks, or attention and FFN sublayers.
Unit = Literal["groups", "blocks", "sublayers"]
# 128 rows of a 7B model's widest activation in float32 are 5.6 MB.
TILE_ROWS = 128


@dataclass(frozen=True)
class Block:
    """One block as criteria see it: its place, its sizes, its weights by transformers' names."""

    index: int
    shape: ModelShape
    weights: dict[str, Tensor]
    rms_norm_eps: float = DEFAULT_EPS
    hidden_act: str = DEFAULT_ACT
    norm: Norm = RMS_NORM

    @property
    def group_width(self) -> int:
        """Channels of one attention group in the attention width."""
        return self.shape.head_dim * self.shape.queries_per_group

    @property
    def ffn_gain(self) -> Tensor:
        """What the norm before the FFN multiplies by, ``[d]`` in at least float32."""
        if self.norm.gain == "none":
            like = self.weights["mlp.up_proj.weight"]
            return widened(like.new_ones(self.shape.hidden_size))
        weight = widened(self.weights["post_attention_layernorm.weight"])
        return 1 + weight if self.norm.gain == "one_plus_weight" else weight

    def normed_of(self, hidden: Tensor) -> Tensor:
        """What the norm takes the root mean square of: ``hidden``, or its distance to its mean."""
        return hidden - hidden.mean(-1, keepdim=True) if self.norm.centred else hidden

    @classmethod
    def of(cls, checkpoint: Checkpoint, index: int, weights: dict[str, Tensor]) -> Block:
        """A block of a checkpoint with these weights."""
        held = checkpoint.rms_norm_eps, checkpoint.hidden_act, checkpoint.family.norm
        return cls(index, checkpoint.shape, weights, *held)


@dataclass(frozen=True)
class BlockScores:
    """Importance per attention group ``[num_key_value_heads]`` and per channel ``[f]``.

    ``attention_channels`` ``[a]`` are there where a criterion scores the input channels of o_proj
    before it adds them up: allocations that compare blocks standardise those.
    """

    attention_groups: Tensor
    ffn_channels: Tensor
    attention_channels: Tensor | None = None

    @classmethod
    def of_channels(cls, attention: Tensor, ffn: Tensor, shape: ModelShape) -> BlockScores:
        """Scores of channels, groups by sum: what removing channels together does at most.

        ``attention`` is ``[a]``; by the triangle inequality the sum bounds the change that the
        group's channels make together.
        """
        return cls(group_sums(attention, shape), ffn, attention)

    @classmethod
    def of_units(cls, attention: Tensor, ffn: Tensor, shape: ModelShape) -> BlockScores:
        """Scores of whole sublayers, scalars, borne by every group and channel of theirs."""
        return cls(
            attention.double().repeat(shape.num_key_value_heads),
            ffn.double().repeat(shape.intermediate_size),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The scores that are there, by name, in float64 on the CPU: what is kept of them."""
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: t.cpu().double() for name, t in held.items() if t is not None}


class Options(BaseOptions):
    """What a criterion may be told."""

    @property
    def prunes(self) -> Unit:
        """What the scores are of: single groups, or units of depth."""
        return "groups"

    @property
    def least_windows(self) -> int:
        """The number of calibration windows below which the criterion can say nothing."""
        return 1


class DepthOptions(Options):
    """Options of criteria whose scores are of whole blocks, or of sublayers."""

    of: Literal["blocks", "sublayers"] = "blocks"

    @property
    def prunes(self) -> Unit:
        """What the scores are of."""
        return self.of


@dataclass(frozen=True)
class Tokens:
    """A micro-batch of whole windows as one block sees it.

    ``activations`` are flat, ``[tokens, width]``; ``first_window`` is the place of the first of
    them in the calibration set, so that what is drawn per token does not depend on how the work
    is divided.
    """

    activations: Activations
    seqlen: int
    first_window: int = 0

    def __getitem__(self, name: str) -> Tensor:
        """An observed tensor, flat: ``[tokens, width]``."""
        return self.activations[name]

    def windows(self, name: str) -> Tensor:
        """An observed tensor by window: ``[windows, seqlen, width]``."""
        return self.activations[name].unflatten(0, (-1, self.seqlen))

    @property
    def places(self) -> Tensor:
        """The place of every token in the calibration set, ``[tokens]`` int64."""
        some = next(iter(self.activations.values()))
        start = self.first_window * self.seqlen
        return torch.arange(start, start + len(some), device=some.device)


def second_moments(tokens: Tokens) -> Sums:
    """Tokens seen, and sums of squares of the inputs of o_proj ``[a]`` and down_proj ``[f]``."""
    attention, ffn = tokens["attention_output"], tokens["ffn_activation"]
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


def sum_of_columns(values: Tensor) -> Tensor:
    """Sum over rows, ``[rows, width] -> [width]`` in float64, tile by tile."""
    total = values.new_zeros(values.shape[1], dtype=torch.float64)
    for tile in tiles(values):
        total += column_sums(tile)
    return total


def mean_absolute_columns(matrix: Tensor) -> Tensor:
    """mean_i |W[i, j]| in float64: ``[rows, columns] -> [columns]``."""
    rows = len(matrix)
    return absolute_product(matrix, torch.full((rows,), 1 / rows))


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
    """Add the scores of each attention group's channels: ``[a] -> [num_key_value_heads]``."""
    return channels.view(shape.num_key_value_heads, -1).sum(1)
