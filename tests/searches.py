"""Searches on a tiny model: windows and budgets that are small, and plain ways to check them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipline.compression.computing import Computing
from bipline.compression.criteria import options_of
from bipline.compression.masks import Masks
from bipline.compression.score import score_model
from bipline.compression.statistics import Scores, Statistics
from bipline.compression.windows import Windows
from bipline.model.block_loop import BlockLoop
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import ModelShape
from tests.tiny import token_windows

SEQLEN = 12
WINDOWS = token_windows(windows=6, seqlen=SEQLEN)
STEP_TOKENS = 4 * SEQLEN
SMALL = {
    "policy-gradient": {"tokens": 2 * STEP_TOKENS * 5},
    "bi-level": {"tokens": 2 * STEP_TOKENS * 5},
}


def searched(model: Path, criterion: str, **given: Any) -> tuple[Statistics, Scores]:
    """Sums and scores of a criterion; a search takes batches of four windows."""
    batch = {"batch": 4} if criterion in SMALL else {}
    options = options_of(criterion, given.pop("seed", 0), {**batch, **given})
    windows = Windows(WINDOWS, "windows", Computing())
    return score_model(open_checkpoint(model), windows, criterion, options)


def loop_of(model: Path, **how: Any) -> BlockLoop:
    """The block loop of a model in float64."""
    return BlockLoop(open_checkpoint(model), torch.float64, **how)


def random_masks(shape: ModelShape, seed: int, share: float | None = None) -> Masks:
    """Masks anywhere between 0 and 1, or hard ones that keep about a share."""
    generator = torch.Generator().manual_seed(seed)
    dense = Masks.dense(shape)
    drawn = [
        torch.rand(kind.shape, generator=generator, dtype=torch.float64)
        for kind in (dense.attention_groups, dense.ffn_channels)
    ]
    return Masks(*(d if share is None else (d < share).double() for d in drawn))


def plain_loss(model: Any, windows: Tensor) -> Tensor:
    """The mean loss of a transformers model on windows."""
    logits = model(windows).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
