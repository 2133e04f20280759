"""Tensors of blocks that lie otherwise than llama.cpp has them: read and put in order block-wise.

Rows that lie group by group or transposed come as the build has them. Experts that lie as one, each
``[in, out]`` with gate and up alternating, become a matrix of gates and one of ups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bipline.model.checkpoint import Checkpoint
from bipline.model.experts import DOWN, GATE_UP, in_turn
from bipline.model.families import block_axes, build_of

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rearranged:
    """A tensor of a block by the name that a build gives it, its shape, and what reads it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass
class HeldBlock:
    """The weights of the block that was read last: the next tensor is mostly of the same."""

    checkpoint: Checkpoint
    index: int = -1
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def tensor(self, index: int, name: str) -> Tensor:
        """A tensor of a block by its name inside it."""
        if index != self.index:
            self.weights, self.index = self.checkpoint.block_weights(index), index
        return self.weights[name]


def lies_otherwise(checkpoint: Checkpoint) -> bool:
    """Whether tensors of its blocks cannot be read row by row."""
    family = checkpoint.family
    return bool(family.by_group or family.transposed or build_of(family).transposed_experts)


def rearranged(held: HeldBlock, index: int) -> list[Rearranged]:
    """The tensors of a block."""
    checkpoint, found = held.checkpoint, []
    shape = checkpoint.shape.block(index)
    for inner, axes in block_axes(checkpoint.family, checkpoint.config, index).items():
        sizes = [shape.axis_size(axis) for axis in axes]
        for name, change in _changes(inner).items():
            changed = change(torch.empty(sizes, device="meta")).shape
            found.append(Rearranged(name, tuple(changed), _reader(held, index, inner, change)))
    return found


def _reader(held: HeldBlock, index: int, inner: str, change: Change) -> Callable[[], Tensor]:
    return lambda: change(held.tensor(index, inner)).contiguous()


def _changes(inner: str) -> dict[str, Change]:
    """What becomes of a tensor, by the names of what it becomes."""
    module, bias = inner.removesuffix("_bias"), inner.endswith("_bias")
    kind, lie = ("bias", _same) if bias else ("weight", _turned)
    if module == GATE_UP:
        return {
            f"mlp.experts.gate_proj.{kind}": lambda tensor: lie(in_turn(tensor)[0]),
            f"mlp.experts.up_proj.{kind}": lambda tensor: lie(in_turn(tensor)[1]),
        }
    return {f"{DOWN}.{kind}": lie} if module == DOWN else {inner: _same}


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _turned(tensor: Tensor) -> Tensor:
    return tensor.mT
