"""A plan that is realised in a test, and the dense model with the corrections in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bipline.artifacts.plan import PruningPlan
from bipline.compression.allocation.problem import Windows
from bipline.compression.compensation.realise import CompensationRequest, realise_in
from bipline.compression.computing import Computing
from bipline.compression.corrections import Corrections
from bipline.compression.slicing import kept_indices
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import block_axes
from tests.tiny import token_windows

WINDOWS = Windows(token_windows(12, 24, seed=5), Computing(torch.float64), "windows")


def realised(
    checkpoint: Checkpoint, plan: PruningPlan, folder: Path, form: str, **options: Any
) -> tuple[PruningPlan, Corrections]:
    """The realised plan and its corrections, written below ``folder``."""
    request = CompensationRequest(form, options)
    place = folder / "corrections"
    return realise_in(place, checkpoint, plan, WINDOWS, request, folder / "work")


@torch.no_grad()
def put_in_place(model: Any, checkpoint: Checkpoint, plan: PruningPlan, held: Corrections) -> None:
    """Set the corrected weights and biases of a dense model whose cut groups are silent."""
    axes = block_axes(checkpoint.family, checkpoint.config)
    for index in held.blocks:
        layer = model.model.layers[index]
        kept = kept_indices(plan.blocks[index], checkpoint.shape)
        for name in held.shapes(index):
            module, kind = name.rsplit(".", 1)
            linear: nn.Linear = layer.get_submodule(module)
            tensor = held.tensor(index, name)
            if kind == "bias":
                linear.bias = nn.Parameter(tensor)
                continue
            rows, columns = (
                kept.get(axis, torch.arange(size))
                for axis, size in zip(axes[name], linear.weight.shape, strict=True)
            )
            linear.weight[rows[:, None], columns] = tensor
