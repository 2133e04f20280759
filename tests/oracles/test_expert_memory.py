"""What fitting a block's experts takes in memory is what is predicted before anything runs."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch

from bipline.compression.compensation import candidates, expert_fit, triangles
from bipline.compression.compensation.candidates import uncorrected
from bipline.compression.compensation.expert_fit import ExpertSquares, fit_experts
from bipline.compression.compensation.memory import compensation_bytes
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import Batch
from bipline.compression.compensation.trials import Trials
from bipline.compression.compensation.versions import PrunedBlock
from bipline.model.block_loop import BlockLoop
from bipline.model.opening import open_checkpoint
from tests.corrections import draw
from tests.oracles.test_compensation_memory import most_bytes
from tests.routed import kept_of_experts
from tests.tiny import tiny_model


@pytest.mark.parametrize("sequential", [True, False])
def test_a_fit_of_experts_takes_what_is_predicted(
    sequential: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TILE_COLUMNS", "STRIP_COLUMNS"):
        monkeypatch.setattr(triangles, name, 32)
    for each in (candidates, expert_fit):
        monkeypatch.setattr(each, "ROWS_TOGETHER", 16)
    monkeypatch.setattr(expert_fit, "STEPS", 2)
    wide = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 1}
    model = tiny_model(
        tmp_path / "model",
        "mixtral",
        dtype=torch.bfloat16,
        num_key_value_heads=1,
        head_dim=8,
        **wide,
    )
    checkpoint = open_checkpoint(model)
    few = {"ridge_factors": (1.0,), "betas": (0.0, 1.0)}
    options = CompensationOptions(sequential=sequential, row_steps=0, input_maps=False, **few)
    plan = kept_of_experts(checkpoint, "none").blocks[1]
    block = BlockLoop(checkpoint, torch.float32).block(1)
    pruned = PrunedBlock(checkpoint, block, plan)
    batches = [Batch(*draw(3, 1, 12, 128).float())]

    def fit() -> None:
        # Ever better, so that there is a best one beside those that are measured.
        better = count(1)
        half, sublayer = pruned.experts_half(), pruned.experts_sublayer()
        tried = Trials(lambda few: [1 / next(better) for _ in few], uncorrected(sublayer))
        squares = ExpertSquares(
            half, pruned.dense, lambda first: iter(batches[first:]), sequential, room=0
        )
        fit_experts(squares, sublayer, options, tried)
        assert tried.chosen.compensation == "least-squares"

    found = most_bytes(fit)
    predicted = compensation_bytes(checkpoint.shape, "least-squares", options, 2, 4)
    assert found <= predicted <= 1.5 * found
