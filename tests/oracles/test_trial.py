"""Trials of widths: what they leave, on which windows, and when blocks that differ are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from bipline.compression.allocation import compensated, trial
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.restored_blocks import error_weights
from bipline.compression.allocation.trial import (
    compared_windows,
    fewer_windows,
    gains_left,
    losses_left,
    restored_windows,
    surely_less,
    trial_options,
)
from bipline.compression.allocation.widths import Widths
from bipline.compression.compensation.drawn_windows import Division
from bipline.compression.compensation.engine import compensate
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import divided
from bipline.model.loading import load_model
from tests.compensated import put_in_layer
from tests.compression.test_measuring_allocations import problem_of
from tests.corrections import COMPUTING, DOUBLE
from tests.oracles.test_compensated_errors import RIDGE, best_uniform
from tests.per_layer import masked_model, plan_of
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return problem_of(tiny_model(tmp_path_factory.mktemp("tried"), "llama-gqa"))


@pytest.mark.parametrize(("shift", "taken"), [(-0.1, True), (-0.01, False), (0.1, False)])
def test_widths_that_differ_are_taken_where_their_loss_is_surely_less(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, shift: float, taken: bool
) -> None:
    """Nearly the same on every window, or by no more than windows differ."""
    noise = torch.linspace(-0.1, 0.1, 20)

    def losses(_: Problem, widths: Sequence[Widths], *__: object) -> Tensor:
        return torch.full((20,), 3.0) if len(set(widths)) == 1 else 3 + shift + noise

    def gains(_: Problem, widths: Sequence[Widths], *__: object) -> tuple[Tensor, Tensor]:
        return losses(_, widths), torch.linspace(1, 2, len(widths))

    monkeypatch.setattr(trial, "losses_left", losses)
    monkeypatch.setattr(trial, "gains_left", gains)
    chosen = compensated.widths(problem, compensated.CompensatedOptions())
    assert (len(set(chosen)) > 1) is taken
    assert taken or chosen == best_uniform(problem)


@given(st.lists(st.floats(-1, 1), max_size=8), st.floats(0.01, 1))
def test_a_loss_is_surely_less_by_two_standard_errors(noise: list[float], shift: float) -> None:
    others = torch.linspace(2, 5, len(noise), dtype=DOUBLE)
    losses = others - shift + torch.tensor(noise, dtype=DOUBLE)
    differences = [float(each) for each in losses - others]
    expected = len(noise) > 1 and mean(differences) < -2 * stdev(differences) / len(noise) ** 0.5
    assert surely_less(losses, others) is expected
    assert not surely_less(others, losses) or mean(differences) > 0


@pytest.mark.parametrize("row_steps", [0, 2])
def test_what_a_trial_leaves_is_the_loss_of_plain_transformers(llama: Path, row_steps: int) -> None:
    """The dense model with what goes at zero and what was corrected in place."""
    problem, options = problem_of(llama), trial_options(RIDGE, row_steps)
    found = losses_left(problem, best_uniform(problem), 8, options)
    windows = compared_windows(problem, 8, options.held_out)
    masked = corrected_model(llama, problem, options)
    torch.testing.assert_close(found.double(), losses_of(masked, windows), rtol=1e-5, atol=1e-6)


def test_what_restoring_a_block_wins_is_that_of_plain_transformers(llama: Path) -> None:
    """The same with one of its blocks as it was in the place of the corrected one."""
    problem, options = problem_of(llama), trial_options(RIDGE, 2)
    widths = best_uniform(problem)
    left, gains = gains_left(problem, widths, 8, options)
    assert torch.allclose(left, losses_left(problem, widths, 8, options), rtol=1e-6)
    windows = restored_windows(problem, 8, options.held_out)
    masked, dense = corrected_model(llama, problem, options), load_model(llama, DOUBLE)
    before, expected = losses_of(masked, windows), []
    for index, layer in enumerate(dense.model.layers):
        pruned, masked.model.layers[index] = masked.model.layers[index], layer
        expected.append((before - losses_of(masked, windows)).mean())
        masked.model.layers[index] = pruned
    torch.testing.assert_close(gains, torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert float(gains.abs().min()) > 1e-5


def corrected_model(model: Path, problem: Problem, options: CompensationOptions) -> Any:
    """Plain transformers' model after a trial of the best uniform widths on eight windows."""
    plan = plan_of(problem.checkpoint, list(problem.plans(best_uniform(problem))))
    fitted, held = divided(fewer_windows(problem, 8).windows.token_ids, options.held_out)
    given = Division(fitted, held, fitted[:0], fitted[:0])
    done = list(compensate(problem.checkpoint, plan, given, COMPUTING, "obs", options))
    masked = masked_model(model, problem.checkpoint, [each.plan for each in done])
    for layer, each in zip(masked.model.layers, done, strict=True):
        put_in_layer(layer, problem.checkpoint, each.plan, each.tensors)
    return masked


def losses_of(model: Any, windows: Tensor) -> Tensor:
    """Mean loss of each window."""
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    return cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").mean(1)


GAINS = st.lists(st.floats(-1, 1), min_size=1, max_size=12)


@given(GAINS, st.floats(0.1, 10), st.data())
def test_an_error_weighs_what_restoring_its_block_wins(
    gains: list[float], scale: float, data: st.DataObject
) -> None:
    errors = data.draw(st.lists(st.floats(1e-3, 1), min_size=len(gains), max_size=len(gains)))
    won, had = torch.tensor(gains, dtype=DOUBLE), torch.tensor(errors, dtype=DOUBLE)
    weights = error_weights(won, had)
    assert float(weights.log().mean()) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(error_weights(scale * won, had / scale), weights)
    if max(gains) <= 0:
        assert bool((weights == 1).all())
        return
    costs = weights * had
    least, mean = float(costs.min()), mean_of_positive(gains)
    for gain, cost in zip(gains, costs.tolist(), strict=True):
        share = max(gain / mean, 0.25)
        assert cost == pytest.approx(least * share / max(min(gains) / mean, 0.25))


def mean_of_positive(gains: Sequence[float]) -> float:
    return sum(max(gain, 0.0) for gain in gains) / len(gains)


@given(windows=st.integers(9, 60), most=st.integers(1, 60))
def test_trials_are_compared_on_windows_that_nothing_was_fitted_on(
    problem: Problem, windows: int, most: int
) -> None:
    numbered = torch.arange(windows)[:, None].expand(-1, 12).contiguous()
    asked = replace(problem, measuring=replace(problem.windows, token_ids=numbered))
    few = fewer_windows(asked, most).windows.token_ids
    fitted = set(divided(few, 0.1)[0][:, 0].tolist())
    compared = compared_windows(asked, most, 0.1)[:, 0].tolist()
    assert compared and len(set(compared)) == len(compared)
    assert not fitted & set(compared)
    assert len(compared) <= 3 * len(few)
    restored = restored_windows(asked, most, 0.1)[:, 0].tolist()
    assert restored and not fitted & {*restored}
    assert len(restored) == len({*restored}) <= trial.RESTORED
    apart = not {*compared} & {*restored}
    assert apart or ({*restored} <= {*compared} and 3 * len(few) >= windows)
    assert len(fitted) + len(compared) == windows or len(compared) >= 2 * len(few)
    # Windows lie text by text: none is left out for where it lies.
    gaps = [
        later - before for before, later in pairwise([-1, *sorted({*fitted, *compared}), windows])
    ]
    assert max(gaps) <= 2 * -(-windows // (len(fitted) + len(compared))) + 1
