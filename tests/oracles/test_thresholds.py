"""Learned thresholds: the budget they meet, and what a share keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.learn_thresholds import (
    kept_by,
    learn_thresholds,
    remaining_share,
)
from bipline.model.block_loop import BlockLoop
from bipline.model.opening import open_checkpoint
from tests.searches import WINDOWS, loop_of, searched


@pytest.mark.slow
def test_thresholds_meet_the_budget_of_every_family(family_model: Path) -> None:
    meet_the_budget_and_repeat(family_model)


def test_thresholds_meet_the_budget_and_repeat(llama: Path) -> None:
    meet_the_budget_and_repeat(llama)


def meet_the_budget_and_repeat(model: Path) -> None:
    loop = BlockLoop(open_checkpoint(model))
    _, scores = searched(model, "wanda-sp")
    for target in (0.8, 0.5):
        shares = [
            learn_thresholds(loop, WINDOWS, scores.blocks, target, tokens=40 * WINDOWS.numel())
            for _ in range(2)
        ]
        assert shares[0] == shares[1]
        reached = remaining_share(loop.checkpoint.shape, torch.tensor(shares[0]))
        assert float(reached) == pytest.approx(target, rel=0.02)
        assert len(set(shares[0])) > 1


def test_remaining_share_counts_weights(llama: Path) -> None:
    shape = open_checkpoint(llama).shape
    attention = 4 * shape.group_weights
    ffn = 40 * shape.channel_weights
    expected = (0.5 * attention + 0.25 * ffn + attention + ffn) / (2 * (attention + ffn))
    found = remaining_share(shape, torch.tensor([[0.5, 0.25], [1.0, 1.0]], dtype=torch.float64))
    assert float(found) == pytest.approx(expected)


def test_thresholds_keep_the_highest_rounded_up() -> None:
    order = torch.tensor([[2, 0, 1, 3]])
    assert kept_by(order, torch.tensor([0.3])).tolist() == [[0, 1, 1, 0]]
    assert kept_by(order, torch.tensor([1e-9])).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_share": 1.0}, "target share 1.0"),
        ({"tokens": 10}, "72 tokens a step"),
        ({"scores": ()}, "scores are of 0 blocks"),
    ],
)
def test_senseless_thresholds(llama: Path, given: dict[str, Any], message: str) -> None:
    _, scores = searched(llama, "random")
    asked = {"scores": scores.blocks, "target_share": 0.5, **given}
    with pytest.raises(InvalidInput, match=message):
        learn_thresholds(loop_of(llama), WINDOWS, **asked)
