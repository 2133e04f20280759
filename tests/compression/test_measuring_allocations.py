"""Allocations that run calibration windows: against direct measurement, and at extremes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate, check_allocation
from bipline.compression.allocation import ALLOCATIONS, load_allocation
from bipline.compression.allocation.block_errors import measure_errors
from bipline.compression.allocation.problem import Layout, Problem
from bipline.compression.allocation.widths import choices_of, of_query_heads
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria import CRITERIA, options_of
from bipline.compression.criteria.interface import Options
from bipline.compression.score import compute_scores, score_model
from bipline.compression.statistics import Scores, empty_statistics
from bipline.compression.windows import Windows
from bipline.model.block_loop import BlockLoop
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
from tests.tiny import tiny_model, token_windows

TOKENS = token_windows(windows=20, seqlen=12)
WINDOWS = Windows(TOKENS, "windows", Computing(torch.float64))
MEASURING = [name for name in ALLOCATIONS if load_allocation(name).WINDOWS]


def scores_of(model: Path, seed: int = 0, criterion: str = "random") -> Scores:
    checkpoint = open_checkpoint(model)
    return compute_scores(checkpoint, empty_statistics(checkpoint), criterion, Options(seed=seed))


def problem_of(
    model: Path, ratio: float = 0.4, layout: Layout = "per-layer", heads: bool = False
) -> Problem:
    """Of groups, or of query ``heads``."""
    checkpoint = open_checkpoint(model)
    free = choices_of(checkpoint.shape, 2)
    choices = (of_query_heads(free) if heads else free,) * checkpoint.shape.num_hidden_layers
    scores = scores_of(model, criterion="magnitude" if heads else "random")
    return Problem(checkpoint, scores, layout, ratio, choices, WINDOWS)


def test_block_errors_are_those_of_the_block_run_again(family_model: Path) -> None:
    check_block_errors(family_model)


def check_block_errors(model: Path) -> None:
    """Each count by columns at zero, the block run whole, biases and attention included."""
    problem = problem_of(model)
    errors = measure_errors(problem, samples=5, grid=1000)
    loop = BlockLoop(problem.checkpoint, torch.float64)
    hidden = loop.embed(TOKENS[:5])
    for index, error in enumerate(errors):
        block, choices = loop.block(index), problem.choices[index]
        dense, source = block.run(hidden), dict(block.weights)
        for name, scores, allowed, found in (
            ("self_attn.o_proj.weight", problem.scores.blocks[index].attention_groups,
             choices.attention_groups, error.attention),
            ("mlp.down_proj.weight", problem.scores.blocks[index].ffn_channels,
             choices.ffn_units, error.ffn_channels),
        ):  # fmt: skip
            for place in {0, len(allowed) // 2, len(allowed) - 1}:
                kept = torch.sort(scores, descending=True, stable=True).indices[: allowed[place]]
                mask = torch.zeros(len(scores)).double()
                mask[kept] = 1
                columns = mask.repeat_interleave(source[name].shape[1] // len(scores))
                block.replace({**source, name: source[name] * columns})
                change = block.run(hidden) - dense
                expected = change.square().sum() / dense.square().sum()
                torch.testing.assert_close(found[place], expected, rtol=1e-5, atol=1e-12)
        block.replace(source)
        hidden = dense


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
@pytest.mark.parametrize("allocation", MEASURING)
def test_measuring_allocations_meet_the_budget(
    llama: Path, allocation: str, layout: Layout
) -> None:
    checkpoint, scores = open_checkpoint(llama), scores_of(llama)
    options = {"tokens": 12_000} if allocation == "threshold" else {}
    given = AllocateSettings(
        ratio=0.4, allocation=allocation, layout=layout, ffn_multiple=1, allocation_option=options
    )
    if layout == "uniform" and load_allocation(allocation).NOT_UNIFORM:
        with pytest.raises(InvalidInput, match="cannot choose uniform widths"):
            allocate(checkpoint, scores, given, 0, WINDOWS)
        return
    plan = allocate(checkpoint, scores, given, 0, WINDOWS)
    blocks = 1 if layout == "uniform" else len(plan.blocks)
    step = checkpoint.shape.group_weights / (blocks * checkpoint.shape.block_weights)
    assert 0.4 <= plan.budget.reached_blocks < 0.4 + step
    again = allocate(checkpoint, scores, given, 0, WINDOWS)
    assert plan == again
    with pytest.raises(InvalidInput, match="give --calibration"):
        allocate(checkpoint, scores, given, 0)


@pytest.mark.parametrize("allocation", ["compensated", "error-aware", "learned"])
@pytest.mark.parametrize("silent", ["self_attn.o_proj.weight", "mlp.down_proj.weight"])
def test_what_adds_nothing_goes_first(tmp_path: Path, allocation: str, silent: str) -> None:
    """With a sublayer's output at zero its weights cost nothing, so they take what they can."""
    model = tiny_model(tmp_path / "model", "llama-mha")
    path = model / "model.safetensors"
    tensors = {
        name: torch.zeros_like(value) if name.endswith(silent) else value
        for name, value in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    problem = problem_of(model, ratio=0.3)
    shape = problem.choices[0].shape
    options = {"steps": 200} if allocation == "learned" else {}
    given = AllocateSettings(
        ratio=0.3, allocation=allocation, layout="per-layer", ffn_multiple=1,
        allocation_option=options,
    )  # fmt: skip
    plan = allocate(problem.checkpoint, problem.scores, given, 0, WINDOWS)
    for block in plan.blocks:
        groups, channels = block.widths
        if silent.startswith("self_attn"):
            assert groups < shape.num_key_value_heads * 0.7
        else:
            assert groups == shape.num_key_value_heads
            assert channels < shape.intermediate_size


def test_depth_criteria_go_with_depth_alone(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    for name in CRITERIA:
        prunes = options_of(name).prunes
        for allocation in ALLOCATIONS:
            given = AllocateSettings(ratio=0.3, allocation=allocation, layout="per-layer")
            if (allocation == "depth") == (prunes != "groups"):
                assert check_allocation(checkpoint, given, name, {}) == allocation
            else:
                with pytest.raises(InvalidInput, match="depth"):
                    check_allocation(checkpoint, given, name, {})


@pytest.mark.parametrize("criterion", ["block-influence", "block-shapley"])
def test_a_block_that_does_nothing_is_dropped_first(tmp_path: Path, criterion: str) -> None:
    model = tiny_model(tmp_path / "model", "llama-gqa", num_hidden_layers=4)
    path, silent = model / "model.safetensors", ("o_proj.weight", "down_proj.weight")
    tensors = {
        name: torch.zeros_like(value) if "layers.2." in name and name.endswith(silent) else value
        for name, value in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    checkpoint = open_checkpoint(model)
    _, scores = score_model(checkpoint, WINDOWS, criterion, options_of(criterion))
    assert scores.prunes == "blocks"
    plan = allocate(checkpoint, scores, AllocateSettings(ratio=0.2), 0)
    assert plan.allocation == "depth"
    assert [block.dropped for block in plan.blocks] == [False, False, True, False]
    assert plan.budget.reached_blocks == pytest.approx(0.25)
    kept = AllocateSettings(ratio=0.2, keep_last=2)
    assert not allocate(checkpoint, scores, kept, 0).blocks[2].dropped


@pytest.mark.slow
def test_learned_widths_are_not_the_uniform_ones_renamed(reference: Path) -> None:
    """On a trained model: the correlation of what is kept, over all groups and channels."""
    checkpoint = open_checkpoint(reference)
    text = reference.parent / "texts" / "calibration.txt"
    drawn = calibrate(checkpoint.folder, [(text, 1.0)], samples=16, seqlen=64, seed=0)
    windows = Windows(drawn.token_ids, drawn.digest, Computing())
    _, scores = score_model(checkpoint, windows, "wanda-sp", Options())
    kept = []
    for allocation, options in (("uniform", {}), ("learned", {"steps": 24})):
        given = AllocateSettings(
            ratio=0.3, allocation=allocation, allocation_option=options, layout="per-layer"
        )
        plan = allocate(checkpoint, scores, given, 0, windows)
        row = torch.zeros(len(plan.blocks), checkpoint.shape.intermediate_size + 4)
        for index, block in enumerate(plan.blocks):
            row[index, list(block.ffn_channels)] = 1
            row[index, [g - 4 for g in block.attention_groups]] = 1
        kept.append(row.flatten())
    assert float(torch.corrcoef(torch.stack(kept))[0, 1]) < 0.99


@pytest.mark.parametrize("allocation", ["compensated", "error-aware"])
def test_with_few_counts_the_budget_is_still_met(
    llama: Path, allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not all counts are weighed, the steps between them are filled in afterwards."""
    from bipline.compression.allocation import least_errors

    monkeypatch.setattr(least_errors, "MOST_COUNTS", 4)
    checkpoint = open_checkpoint(llama)
    given = AllocateSettings(ratio=0.4, allocation=allocation, layout="per-layer", ffn_multiple=1)
    plan = allocate(checkpoint, scores_of(llama), given, 0, WINDOWS)
    shape = checkpoint.shape
    step = shape.group_weights / (2 * shape.block_weights)
    assert 0.4 <= plan.budget.reached_blocks < 0.4 + step
