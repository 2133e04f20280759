"""Scoring by gradients on a tiny model, and statistics held to each other bit by bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bipline.compression.computing import Computing
from bipline.compression.criteria import options_of
from bipline.compression.score import score_model
from bipline.compression.statistics import Scores, Statistics
from bipline.compression.windows import Windows
from bipline.model.opening import open_checkpoint
from tests.tiny import token_windows

# Two chunks, the second of two windows.
WINDOWS = token_windows(windows=18, seqlen=12)
CHUNKS = (slice(0, 16), slice(16, 18))
EXACT = Computing(torch.float64)


def scored(
    model: Path,
    criterion: str = "llm-pruner",
    computing: Computing = EXACT,
    work: Path | None = None,
    windows: Tensor = WINDOWS,
    **options: object,
) -> tuple[Statistics, Scores]:
    """Sums and scores of a criterion on windows, by default of a gradient criterion."""
    chosen = options_of(criterion, 0, options)
    given = Windows(windows, "windows", computing)
    return score_model(open_checkpoint(model), given, criterion, chosen, work)


def assert_same_bits(one: Statistics, other: Statistics) -> None:
    """Hold two statistics to the same model and the same sums."""
    assert (one.tensor_digest, one.tensors) == (other.tensor_digest, other.tensors)
    for expected, found in zip(one.blocks, other.blocks, strict=True):
        assert expected.keys() == found.keys()
        assert all(expected[name].equal(found[name]) for name in expected)


def assert_same_scores(one: Scores, other: Scores) -> None:
    """Hold two scores to the same bits."""
    for expected, found in zip(one.blocks, other.blocks, strict=True):
        assert expected.attention_groups.equal(found.attention_groups)
        assert expected.ffn_channels.equal(found.ffn_channels)
