"""What a criterion sees of a block, and the sums most criteria share.

Shapes: hidden_size d, intermediate_size f, attention width a = num_attention_heads * head_dim.
An attention group's channels are consecutive in the attention width, because query heads that
share a KV head are consecutive in transformers' layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from bipline.compression.criteria.norms import NO_NORM, RmsNorm, gain_of
from bipline.compression.options import BaseOptions
from bipline.model.block_loop import Activations
from bipline.model.builds import Sublayer, SublayerNorms, build_named
from bipline.model.checkpoint import DEFAULT_ACT, DEFAULT_EPS, Checkpoint, widened
from bipline.model.families import ModelShape, build_of
from bipline.model.family import RMS_NORM, Norm
from bipline.model.gating import Gating

Sums = dict[str, Tensor]
# What goes as a whole: groups and channels, whole blocks, or attention and FFN sublayers.
Unit = Literal["groups", "blocks", "sublayers"]
# The matrix by which a sublayer adds to the residual stream, and what is seen of it.
OUTPUT_MATRICES: dict[Sublayer, str] = {
    "attention": "self_attn.o_proj.weight",
    "ffn": "mlp.down_proj.weight",
}
INPUTS: dict[Sublayer, str] = {"attention": "attention_output", "ffn": "ffn_activation"}
PROJECTED: dict[Sublayer, str] = {"attention": "attention_projected", "ffn": "ffn_projected"}
# 128 rows of a 7B model's widest activation in float32 are 5.6 MB.
TILE_ROWS = 128
FFN_SCALES = "ffn_scales"


@dataclass(frozen=True)
class Block:
    """One block as criteria see it: its place, its sizes, its weights by transformers' names."""

    index: int
    shape: ModelShape
    weights: dict[str, Tensor]
    rms_norm_eps: float = DEFAULT_EPS
    hidden_act: str = DEFAULT_ACT
    norm: Norm = RMS_NORM
    norms: Mapping[Sublayer, SublayerNorms] = field(
        default_factory=lambda: build_named("decoder").norms
    )
    # Whether the FFN reads what enters the block, and not what attention makes of it.
    parallel: bool = False
    gating: Gating = Gating()  # noqa: RUF009
    # Whether the matrices of its experts are multiplied from the right, gate and up in turn.
    transposed_experts: bool = False

    @property
    def gated(self) -> bool:
        """Whether its FFN has a gate."""
        return "mlp.gate_proj.weight" in self.weights

    @property
    def group_width(self) -> int:
        """Channels of one attention group in the attention width."""
        return self.shape.head_dim * self.shape.queries_per_group

    def norm_before(self, sublayer: Sublayer) -> RmsNorm:
        """The norm over what a sublayer's first matrices read; none where it reads the stream."""
        return self._norm(self.norms[sublayer].before)

    def norm_behind(self, sublayer: Sublayer) -> RmsNorm:
        """The norm over what a sublayer's last matrix gives; none where that is added as it is."""
        return self._norm(self.norms[sublayer].after)

    def _norm(self, name: str) -> RmsNorm:
        if not name:
            return NO_NORM
        weight = self.weights.get(f"{name}.weight")
        like = widened(next(iter(self.weights.values())).new_ones(self.shape.hidden_size))
        gain = gain_of(None if weight is None else widened(weight), self.norm.gain, like)
        bias = self.weights.get(f"{name}.bias")
        added = None if bias is None else widened(bias)
        return RmsNorm(gain, self.rms_norm_eps, self.norm.centred, added)

    def output_matrix(self, sublayer: Sublayer) -> Tensor:
        """o_proj or down_proj ``[d, n]`` as the stream sees it: behind the gain of a norm."""
        weight, norm = self.weights[OUTPUT_MATRICES[sublayer]], self.norm_behind(sublayer)
        return weight if norm.gain is None else norm.scaled(widened(weight))

    def output_inputs(self, sublayer: Sublayer, tokens: Tokens) -> Tensor:
        """What :meth:`output_matrix` reads, ``[tokens, n]``: its product is what the stream gets.

        Behind a norm these are its inputs over the dense root mean square of what it gives.
        """
        inputs, norm = tokens[INPUTS[sublayer]], self.norm_behind(sublayer)
        return inputs if norm.gain is None else inputs * self.output_scale(sublayer, tokens)

    def between(self, tokens: Tokens) -> Tensor:
        """The stream with what attention adds and without what the FFN does, ``[tokens, d]``.

        It is what an FFN behind its attention reads; nothing reads it where they are parallel.
        """
        if not self.parallel:
            return tokens["residual"]
        return tokens["hidden"] + tokens["attention_projected"]

    def output_scale(self, sublayer: Sublayer, tokens: Tokens) -> Tensor:
        """One over the dense root mean square of what enters the norm behind: ``[tokens, 1]``."""
        projected = widened(tokens[PROJECTED[sublayer]])
        norm = self.norm_behind(sublayer)
        return torch.cat([norm.inverse(tile) for tile in tiles(projected)])

    @classmethod
    def of(cls, checkpoint: Checkpoint, index: int, weights: dict[str, Tensor]) -> Block:
        """A block of a checkpoint with these weights."""
        held = checkpoint.rms_norm_eps, checkpoint.hidden_act, checkpoint.family.norm
        build, shape = build_of(checkpoint.family), checkpoint.shape.block(index)
        keys = checkpoint.family.clamped_gate
        gating = Gating.of(checkpoint.hidden_act, keys, checkpoint.config)
        return cls(
            index, shape, weights, *held, build.norms, build.parallel,
            gating=gating, transposed_experts=build.transposed_experts,
        )  # fmt: skip


@dataclass(frozen=True)
class BlockScores:
    """Importance per attention group ``[num_key_value_heads]`` and per channel ``[f]``.

    ``attention_channels`` ``[a]`` are there where a criterion scores the input channels of o_proj
    before it adds them up: allocations that compare blocks standardise those, and a query head has
    the sum of its own. Where an FFN has
    ``experts`` ``[experts]`` these have scores and ``ffn_channels`` has none; ``expert_tokens``
    are the tokens that each of them saw, where windows were run. ``expert_channels``
    ``[experts, f]`` are compared within their expert alone, ``shared_channels`` among what all
    tokens share beside experts.
    """

    attention_groups: Tensor
    ffn_channels: Tensor
    attention_channels: Tensor | None = None
    experts: Tensor | None = None
    expert_tokens: Tensor | None = None
    expert_channels: Tensor | None = None
    shared_channels: Tensor | None = None

    @property
    def ffn_units(self) -> Tensor:
        """Scores of what an FFN loses: its channels, or its experts."""
        return self.ffn_channels if self.experts is None else self.experts

    @classmethod
    def of_channels(cls, attention: Tensor, ffn: Tensor, shape: ModelShape) -> BlockScores:
        """Scores of channels, groups by sum: what removing channels together does at most.

        ``attention`` is ``[a]``, ``ffn`` of channels, or of experts where the FFN has some; by
        the triangle inequality the sum bounds the change that the group's channels make together.
        """
        return cls.of_ffn(group_sums(attention, shape), ffn, shape, attention)

    @classmethod
    def of_ffn(
        cls, groups: Tensor, ffn: Tensor, shape: ModelShape, channels: Tensor | None = None
    ) -> BlockScores:
        """Scores of groups, and of an FFN's channels or experts, whichever it has."""
        if shape.num_experts:
            return cls(groups, ffn.new_empty(0), channels, experts=ffn)
        return cls(groups, ffn, channels)

    @classmethod
    def of_units(cls, attention: Tensor, ffn: Tensor, shape: ModelShape) -> BlockScores:
        """Scores of whole sublayers, scalars, borne by every group, channel or expert of theirs."""
        groups = attention.double().repeat(shape.num_key_value_heads)
        return cls.of_ffn(groups, ffn.double().repeat(shape.ffn_units), shape)

    def inside(self, experts: Tensor, shared: Tensor | None) -> BlockScores:
        """The same with scores of the channels of every expert, and of what all tokens share."""
        return replace(self, expert_channels=experts, shared_channels=shared)

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


def mean_ffn_scale(sums: Sums) -> Tensor | float:
    """The mean of one over what the norm behind the FFN divides by; 1 where there is none."""
    return sums[FFN_SCALES] / sums["tokens"] if FFN_SCALES in sums else 1.0


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


def query_head_sums(channels: Tensor, shape: ModelShape) -> Tensor:
    """Add the scores of each query head's channels: ``[a] -> [num_key_value_heads, queries]``."""
    return channels.view(shape.num_key_value_heads, shape.queries_per_group, -1).sum(2)


def group_sums(channels: Tensor, shape: ModelShape) -> Tensor:
    """Add the scores of each attention group's channels: ``[a] -> [num_key_value_heads]``."""
    return channels.view(shape.num_key_value_heads, -1).sum(1)
