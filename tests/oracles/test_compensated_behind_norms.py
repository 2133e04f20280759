"""Compensation where norms lie behind sublayers, or sublayers beside each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bipline.compression.compensation.held_out import difference
from bipline.compression.compensation.norms_behind import (
    LEAST_GAIN,
    HeadShares,
    drift_of,
    importance_of,
    weights_of,
)
from bipline.compression.compensation.streams import divided
from bipline.compression.criteria.norms import NO_NORM, RmsNorm
from bipline.compression.prune import prune
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from tests.compensated import WINDOWS, put_in_place, realised
from tests.masking import silence
from tests.oracles.test_slicing import random_plan
from tests.tiny import tiny_model

HELD = divided(WINDOWS.token_ids, 0.1)[1]


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).double()


def test_a_drift_in_front_of_a_norm_gives_what_is_wanted_behind_it() -> None:
    """With the root mean square held, but for what gains next to nothing cannot give."""
    projected, wanted = draw(9, 6), draw(9, 6) + 1
    assert drift_of(NO_NORM, projected, wanted).equal(wanted)
    gain = torch.tensor([1.0, -2.0, 0.5, 3.0, 1e-9, 0.0]).double()
    norm = RmsNorm(gain, 1e-6)
    moved = projected + drift_of(norm, projected, wanted - norm(projected))
    found = gain * moved * norm.inverse(projected) - norm(projected)
    squares = gain.square()
    share = squares / (squares + LEAST_GAIN * squares.mean())
    torch.testing.assert_close(found, share * (wanted - norm(projected)))
    assert bool(moved.isfinite().all()) and (share[:4] > 0.9).all()


def test_squares_in_front_are_weighed_as_those_behind() -> None:
    """w |g (z - z')|^2 / r^2 over tokens and channels, in front and behind."""
    norm, weights = RmsNorm(draw(6), 1e-6), draw(9).square()
    projected, change = draw(9, 6), 1e-3 * draw(9, 6)
    behind = (weights[:, None] * (norm.gain * change * norm.inverse(projected)).square()).sum()
    importance = importance_of(norm, None)
    assert importance is not None and importance_of(NO_NORM, None) is None
    in_front = weights_of(norm, projected, weights)[:, None] * importance * change.square()
    torch.testing.assert_close(in_front.sum(), behind)


def test_factors_keep_the_mean_square_of_what_a_norm_over_heads_gives() -> None:
    queries, keys, groups = 2 * draw(50, 24) + draw(24), draw(50, 8), 4
    shares = HeadShares(groups, groups, 0.0)
    for part in (slice(0, 20), slice(20, None)):
        shares.add(queries[part], keys[part])
    for kept in ((0, 2), (1, 2, 3)):
        factors = shares.factors(kept)
        for values, factor in zip((queries, keys), factors.values(), strict=True):
            there = values.unflatten(1, (groups, -1))[:, list(kept)].flatten(1)
            dense = there / values.square().mean(1, keepdim=True).sqrt()
            sliced = factor * there / there.square().mean(1, keepdim=True).sqrt()
            torch.testing.assert_close(
                sliced.square().mean(), dense.square().mean(), rtol=1e-6, atol=0
            )


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("case", ["gemma2", "olmo2", "exaone4", "phi", "cohere"])
def test_errors_are_those_of_transformers_block(case: str, tmp_path: Path) -> None:
    """Of the first block: as the plan cuts it, and with its corrections in place."""
    model = tiny_model(tmp_path / "model", case)
    checkpoint = open_checkpoint(model)
    plan, held = realised(checkpoint, random_plan(checkpoint, 0.4), tmp_path, "obs")
    record = plan.compensated
    assert record is not None
    before = random_plan(checkpoint, 0.4)

    def behind_first_block(built: torch.nn.Module) -> Tensor:
        states: Tensor = built(HELD, output_hidden_states=True).hidden_states[1]
        return states.flatten(0, 1)

    dense = behind_first_block(load_model(model, torch.float64))
    for blocks, corrected, error in (
        (before.blocks, False, record.blocks[0].error_without),
        (plan.blocks, True, record.blocks[0].error),
    ):
        masked = load_model(model, torch.float64)
        silence(masked, checkpoint, blocks)
        if corrected:
            put_in_place(masked, checkpoint, plan, held)
        found = difference(behind_first_block(masked), dense, checkpoint.rms_norm_eps)
        assert found / HELD.numel() == pytest.approx(error, rel=1e-5)
    assert record.error < record.error_without
    prune(checkpoint, plan, tmp_path / "out", corrections=held)
    assert open_checkpoint(tmp_path / "out").parameters < checkpoint.parameters


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gemma2", "olmo3", "phi"])
def test_a_run_that_goes_on_behind_a_block_ends_with_the_same_tensors(
    case: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", case))
    plan = random_plan(checkpoint, 0.4)
    whole, held = realised(checkpoint, plan, tmp_path / "whole", "obs")
    shutil.copytree(tmp_path / "whole" / "work", tmp_path / "rest" / "work")
    for file in (tmp_path / "rest" / "work").glob("block-00001.*"):
        file.unlink()
    rest, again = realised(checkpoint, plan, tmp_path / "rest", "obs")
    assert again.digest == held.digest and rest.digest == whole.digest
    changed = {name for index in held.blocks for name in held.shapes(index)}
    assert ("self_attn.q_norm.weight" in changed) == (case == "olmo3")
