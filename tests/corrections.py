"""Drawn inputs and their moments, plans that keep a share, and blocks corrected along them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bipline.compression.compensation.drawn_windows import divided_with_drawn
from bipline.compression.compensation.engine import BlockCorrection, compensate
from bipline.compression.compensation.moments import Moments, MomentSums
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.computing import Computing
from bipline.model.checkpoint import Checkpoint
from bipline.values.compensation import Compensation
from bipline.values.plan import PruningPlan
from tests.per_layer import kept, plan_of
from tests.tiny import token_windows

DOUBLE = torch.float64
CPU = torch.device("cpu")
COMPUTING = Computing(dtype=DOUBLE)
WINDOWS = token_windows(windows=12, seqlen=24)


def seeded(seed: int) -> torch.Generator:
    """A generator that draws the same every time."""
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def inputs_of(tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated inputs with a mean that is not zero."""
    mixed = draw(tokens, columns, seed=seed) @ draw(columns, columns, seed=seed + 1)
    return mixed + draw(1, columns, seed=seed + 2)


def moments_of(
    x: Tensor,
    drift: Tensor | None = None,
    weights: Tensor | None = None,
    centred: bool = False,
) -> Moments:
    """Moments of inputs ``[tokens, columns]``, by default of equal tokens and without drift."""
    sums = MomentSums(x.shape[1], 0 if drift is None else drift.shape[1], CPU)
    sums.add(x, torch.ones(len(x), dtype=DOUBLE) if weights is None else weights, drift)
    return sums.moments(centred=centred)


def narrowed(checkpoint: Checkpoint, seed: int = 0, share: float = 0.5) -> PruningPlan:
    """A plan that keeps a drawn share of the groups and channels, as many in every block."""
    shape, generator = checkpoint.shape, seeded(seed)

    def some(count: int) -> list[int]:
        return torch.randperm(count, generator=generator)[: max(1, round(share * count))].tolist()

    blocks = [
        kept(some(shape.num_key_value_heads), some(shape.intermediate_size))
        for _ in range(shape.num_hidden_layers)
    ]
    return plan_of(checkpoint, blocks, "uniform")


def whole(checkpoint: Checkpoint) -> PruningPlan:
    """A plan that keeps everything."""
    return narrowed(checkpoint, share=1.0)


def corrected(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    compensation: Compensation,
    windows: Tensor = WINDOWS,
    **options: Any,
) -> list[BlockCorrection]:
    """What compensation makes of every block."""
    given_options = CompensationOptions(**options)
    divided = divided_with_drawn(COMPUTING.loop(checkpoint), windows, compensation, given_options)
    return list(compensate(checkpoint, plan, divided, COMPUTING, compensation, given_options))
