"""A plan that is realised in a test, and the dense model with the corrections in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bipline.compression.compensation.realise import realise
from bipline.compression.computing import Computing
from bipline.compression.corrections import KIND, Corrections, open_corrections
from bipline.compression.slicing import kept_indices
from bipline.compression.windows import Windows
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import block_axes
from bipline.settings.line import CompensateSettings
from bipline.storage.directory import atomic_directory
from bipline.values.plan import BlockPlan, PruningPlan
from tests.masking import called, layers_of
from tests.parted import as_built, rows_inside
from tests.tiny import token_windows

WINDOWS = Windows(token_windows(12, 24, seed=5), "windows", Computing(torch.float64))
# Random tokens teach nothing of others: where held-out windows are to bear out what was fitted,
# each is there twice.
REPEATED = Windows(token_windows(6, 24, seed=5).repeat(2, 1), "windows", Computing(torch.float64))


def realised(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    folder: Path,
    compensation: Any,
    windows: Windows = WINDOWS,
    **options: Any,
) -> tuple[PruningPlan, Corrections]:
    """The realised plan and its corrections, written below ``folder``."""
    settings = CompensateSettings(compensation=compensation, compensation_option=options)
    place = folder / "corrections"
    with atomic_directory(place, KIND) as writer:
        realise(checkpoint, plan, windows, settings, writer, folder / "work")
    return open_corrections(place)


@torch.no_grad()
def put_in_place(model: Any, checkpoint: Checkpoint, plan: PruningPlan, held: Corrections) -> None:
    """Set the corrected weights and biases of a dense model whose cut groups are silent."""
    for index in held.blocks:
        tensors = {name: held.tensor(index, name) for name in held.shapes(index)}
        put_in_layer(layers_of(model)[index], checkpoint, plan.blocks[index], tensors)


@torch.no_grad()
def put_in_layer(
    layer: Any, checkpoint: Checkpoint, plan: BlockPlan, tensors: Mapping[str, Tensor]
) -> None:
    """Set the corrected weights and biases of one block of a dense model."""
    axes = block_axes(checkpoint.family, checkpoint.config)
    held = {name: each.data for name, each in layer.named_parameters()}
    kept, inside = kept_indices(plan, checkpoint.shape), rows_inside(checkpoint)
    for name, tensor in tensors.items():
        module, kind = name.rsplit(".", 1)
        if kind == "bias":
            called(layer, checkpoint, module).bias = nn.Parameter(tensor)
            continue
        rows, *columns = (
            kept.get(axis, torch.arange(checkpoint.shape.axis_size(axis))) for axis in axes[name]
        )
        stored, own = inside[name]
        places = own[rows].view(-1, *(1 for _ in columns)), *columns
        as_built(checkpoint, stored, held)[places] = tensor
