"""A block of transformers by the names of its build, where its class stores several as one."""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.model.checkpoint import Checkpoint
from bipline.model.families import block_axes, block_parts, family_in


def parted(checkpoint: Checkpoint, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is ``held`` of a block's parameters, by the names of its build; as its build has it."""
    inside = rows_inside(checkpoint)
    return {name: as_built(checkpoint, stored, held)[rows]
            for name, (stored, rows) in inside.items() if stored in held}  # fmt: skip


def rows_inside(checkpoint: Checkpoint) -> dict[str, tuple[str, Tensor]]:
    """Of each tensor of a build: the parameter of its class that it lies in, and its rows there."""
    config, shape = checkpoint.config, checkpoint.shape
    family = family_in(config)
    axes, found = block_axes(family, config), {}
    for stored, parts in block_parts(family, config).items():
        counts = [shape.axis_size(axes[part][0]) for part in parts]
        alternate = stored.rpartition(".")[0] in family.by_group
        groups = shape.num_key_value_heads if alternate else 1
        rows: dict[str, list[int]] = {part: [] for part in parts}
        first = 0
        for _ in range(groups):
            for part, count in zip(parts, counts, strict=True):
                rows[part] += range(first, first + count // groups)
                first += count // groups
        found |= {part: (stored, torch.tensor(rows[part])) for part in parts}
    return found


def as_built(checkpoint: Checkpoint, stored: str, held: dict[str, Tensor]) -> Tensor:
    """A parameter of a block, the outputs of its matrix along the first dimension: a view."""
    turned = stored.removesuffix(".weight") in family_in(checkpoint.config).transposed
    return held[stored].T if turned else held[stored]
