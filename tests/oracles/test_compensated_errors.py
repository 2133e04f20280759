"""Allocation ``compensated``: its errors in closed form, its sensitivities by what noise does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import compensated
from bipline.compression.allocation.compensated_errors import (
    every_so_many,
    measure_compensated_errors,
)
from bipline.compression.allocation.least_errors import ranked_splits, widths_of_least
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.sensitivity import sensitivities
from bipline.compression.allocation.split import uniform_candidates
from bipline.compression.allocation.trial import Trials, losses_left, of_least_left, trial_options
from bipline.compression.allocation.widths import Widths
from bipline.compression.calibrate import calibrate
from bipline.compression.compensation.obs import elimination_of, remove_greedily
from bipline.compression.compensation.triangles import Triangles
from bipline.compression.computing import Computing
from bipline.compression.windows import Windows
from bipline.model.block_loop import BlockLoop
from bipline.model.halves import DOWN_PROJ, O_PROJ, Halves
from bipline.model.opening import open_checkpoint
from tests.compression.test_measuring_allocations import problem_of
from tests.tiny import tiny_model, token_windows

DOUBLE = torch.float64
RIDGE = 1e-2
TOKENS = token_windows(windows=20, seqlen=12)


def left(weight: Tensor, second: Tensor, removed: list[int], width: int) -> float:
    """min over W' of E||(W - W'_S) x||^2 + lambda ||.||^2 with these groups at zero, directly."""
    columns = torch.tensor([g * width + i for g in removed for i in range(width)], dtype=int)
    regular = second + RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=DOUBLE)
    block = torch.linalg.inv(regular)[columns][:, columns]
    gone = weight[:, columns]
    return float(torch.trace(gone @ torch.linalg.solve(block, gone.T)))


def greedy_by_rounds(
    weight: Tensor, second: Tensor, width: int, runs: int, rounds: int
) -> list[int]:
    """One group of each run a round, every one the cheapest of those whose run has its turn."""
    removed: list[int] = []
    size = weight.shape[1] // width // runs
    for _ in range(rounds):
        turns = set(range(runs))
        while turns:
            able = [g for g in range(runs * size) if g not in removed and g // size in turns]
            costs = {g: left(weight, second, [*removed, g], width) for g in able}
            removed.append(min(able, key=costs.__getitem__))
            turns.remove(removed[-1] // size)
    return removed


@pytest.mark.parametrize(("name", "heads"), [(O_PROJ, False), (DOWN_PROJ, False), (O_PROJ, True)])
def test_errors_are_those_of_the_best_weights(
    name: str, heads: bool, llama: Path, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, "llama-gqa", num_attention_heads=16) if heads else llama
    problem = problem_of(model, heads=heads)
    errors = measure_compensated_errors(problem, RIDGE)
    loop = BlockLoop(problem.checkpoint, DOUBLE)
    hidden, shape = loop.embed(TOKENS), problem.checkpoint.shape
    eps = float(problem.checkpoint.config["rms_norm_eps"])
    for index, error in enumerate(errors):
        halves = Halves.of(loop.block(index))
        residual = halves.after_attention(hidden)
        inputs, behind = halves.ffn_activation(residual), halves.after_ffn(residual, hidden)
        found, width = error.ffn_channels, 1
        allowed = problem.choices[index].ffn_units
        if name == O_PROJ:
            inputs, behind = halves.attention_output(hidden), residual
            found, width = error.attention, shape.head_dim * shape.queries_per_group
            allowed = problem.choices[index].attention.counts
        weights = 1 / (behind.square().mean(-1) + eps).flatten()
        x = inputs.flatten(0, 1)
        second = x.T @ (weights[:, None] * x) / weights.sum()
        weight = halves.weights[f"{name}.weight"]
        runs = 4 if heads else 1
        width = shape.head_dim if heads else width
        groups = weight.shape[1] // width // runs
        if heads:
            order = greedy_by_rounds(weight, second, width, runs, groups - allowed[0])
        else:
            elimination = elimination_of(weight, Triangles.of(second), RIDGE, width)
            order = remove_greedily(elimination, groups - allowed[0])
        gone = [order[: runs * (groups - count)] for count in allowed]
        expected = [left(weight, second, each, width) for each in gone]
        scale = weights.mean() / len(weight)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=DOUBLE) * scale)
        assert found[-1] == 0 and bool((found.diff() <= 0).all())
        hidden = halves.after_ffn(residual, hidden)


def test_too_few_tokens_are_refused(llama: Path) -> None:
    problem = problem_of(llama)
    few = Problem(**{**vars(problem), "measuring": Windows(TOKENS[:6], "", Computing(DOUBLE))})
    with pytest.raises(InvalidInput, match="it needs 80, so at least 7 samples of seqlen 12"):
        measure_compensated_errors(few, RIDGE)


def test_noise_behind_the_last_block_moves_the_output_by_its_share(llama: Path) -> None:
    """Nothing reads it but the norm, so the weight is one, less what a longer stream hides."""
    weights = sensitivities(problem_of(llama), 20, 0.01, 0)
    assert len(weights) == 2 and all(value > 0 for pair in weights for value in pair)
    assert weights[-1][1] == pytest.approx(1, rel=0.1)


def test_sensitivities_are_slopes(llama: Path) -> None:
    small, smaller = (sensitivities(problem_of(llama), 20, share, 0) for share in (4e-3, 1e-3))
    for pair, other in zip(small, smaller, strict=True):
        assert pair == pytest.approx(other, rel=0.3)


@pytest.mark.parametrize("heads", [False, True])
def test_the_split_that_leaves_the_least_is_chosen(llama: Path, heads: bool) -> None:
    problem = problem_of(llama, layout="uniform", heads=heads)
    options = compensated.CompensatedOptions(tried=10, margin=1e6)
    chosen = compensated.widths(problem, options)
    assert len(set(chosen)) == 1
    left_by = {
        split: loss_left(problem, [split] * len(chosen)) for split in uniform_candidates(problem)
    }
    assert len(left_by) > 1
    assert left_by[chosen[0]] == min(left_by.values())


def test_without_a_trial_the_smallest_sum_of_errors_is_chosen(llama: Path) -> None:
    problem = problem_of(llama, layout="uniform")
    errors = measure_compensated_errors(problem, RIDGE)
    options = compensated.CompensatedOptions(tried=1)
    assert compensated.widths(problem, options)[0] == ranked_splits(problem, errors)[0]


def test_splits_far_behind_the_best_are_not_ranked(llama: Path) -> None:
    problem = problem_of(llama, layout="uniform")
    errors = measure_compensated_errors(problem, RIDGE)
    every = ranked_splits(problem, errors)
    assert len(every) > 1 and every[:1] == ranked_splits(problem, errors, 1.0)
    nearer = ranked_splits(problem, errors, 1.5)
    assert nearer == every[: len(nearer)]


def test_of_some_blocks_the_errors_are_those_of_all(llama: Path) -> None:
    problem = problem_of(llama, layout="uniform")
    whole = measure_compensated_errors(problem, RIDGE)
    some = measure_compensated_errors(problem, RIDGE, most=1)
    assert len(whole) > 1 and len(some) == 1
    for error, expected in zip(some, whole[:1], strict=True):
        assert torch.equal(error.ffn_channels, expected.ffn_channels)


def loss_left(problem: Problem, widths: Sequence[Widths], row_steps: int = 0) -> float:
    return float(losses_left(problem, widths, 32, trial_options(RIDGE, row_steps)).mean())


@given(blocks=st.integers(1, 200), most=st.none() | st.integers(1, 200))
def test_of_at_most_so_many_blocks_those_are_measured_that_are_evenly_spread(
    blocks: int, most: int | None
) -> None:
    every = every_so_many(blocks, most)
    taken = len(range(0, blocks, every))
    assert taken <= (most or blocks)
    assert every == 1 or len(range(0, blocks, every - 1)) > (most or blocks)


def best_uniform(problem: Problem) -> list[Widths]:
    errors = measure_compensated_errors(problem, RIDGE)
    return [ranked_splits(problem, errors)[0]] * len(problem.choices)


def test_widths_that_differ_are_not_taken_where_they_leave_more(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a trained model: only there a loss tells anything."""
    text = reference.parent / "texts" / "calibration.txt"
    drawn = calibrate(
        open_checkpoint(reference).folder, [(text, 1.0)], samples=48, seqlen=64, seed=0
    )
    windows = Windows(drawn.token_ids, drawn.digest, Computing())
    problem = replace(problem_of(reference, layout="per-layer"), measuring=windows)
    # As if the first blocks did not matter at all: they are stripped.
    misled = [(10.0**-place, 10.0**-place) for place in range(len(problem.choices), 0, -1)]
    monkeypatch.setattr(compensated, "sensitivities", lambda *_: misled)
    weights = torch.tensor([first for first, _ in misled])
    monkeypatch.setattr(compensated, "error_weights", lambda *_: weights)
    alone = compensated.widths(problem, compensated.CompensatedOptions(tried=1))
    uniform = best_uniform(problem)
    assert loss_left(problem, alone) > loss_left(problem, uniform)
    by_errors = compensated.widths(problem, compensated.CompensatedOptions(tried=1, weighed=False))
    options = compensated.CompensatedOptions()
    candidates = [by_errors, uniform]
    trial = trial_options(options.ridge, options.row_steps)
    nearest = of_least_left(Trials(problem, options.windows, trial), candidates)
    assert nearest in candidates
    assert compensated.widths(problem, options) == nearest


def test_widths_that_differ_leave_no_more_than_the_best_uniform_ones(llama: Path) -> None:
    problem = problem_of(llama, layout="per-layer")
    for row_steps in (0, 4):
        uniform = loss_left(problem, best_uniform(problem), row_steps)
        for weighed in (False, True):
            options = compensated.CompensatedOptions(weighed=weighed, row_steps=row_steps)
            chosen = compensated.widths(problem, options)
            assert loss_left(problem, chosen, row_steps) <= uniform


def test_per_layer_the_weights_that_leave_the_least_are_chosen(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(llama, layout="per-layer")

    def chosen(*weights: float, tried: int) -> list[Widths]:
        options = compensated.CompensatedOptions(attention_weights=weights, tried=tried)
        return compensated.widths(problem, options)

    few, many = chosen(0.01, tried=1), chosen(100.0, tried=1)
    assert sum(w.attention_groups for w in few) < sum(w.attention_groups for w in many)
    alone = compensated.widths(problem, compensated.CompensatedOptions(tried=1, weighed=False))
    restored = torch.tensor([3.0, *[1.0] * (len(problem.choices) - 1)])
    monkeypatch.setattr(compensated, "error_weights", lambda *_: restored)
    errors = measure_compensated_errors(problem, RIDGE)
    weights = [(float(each), float(each)) for each in restored]
    by_restored = widths_of_least(problem, problem, compensated._weighed(errors, weights))
    every = (few, many, by_restored, alone, best_uniform(problem))
    left = {tuple(w): loss_left(problem, w, 4) for w in every}
    assert tuple(chosen(0.01, 100.0, tried=2)) == min(left, key=lambda each: left[each])
    assert chosen(100.0, 0.01, tried=1) == many
