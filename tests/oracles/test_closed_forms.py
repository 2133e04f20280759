"""Closed forms against dense solvers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.compression.compensation.closed_forms import LeastSquares, bias_correction, factor
from tests.corrections import (
    DOUBLE,
    draw,
    inputs_of,
    moments_of,
    seeded,
)

problems = st.tuples(st.integers(1, 6), st.integers(2, 8), st.integers(0, 1000))


def divided_columns(columns: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(columns, generator=seeded(seed))
    cut = 1 + seed % (columns - 1)
    return order[:cut].sort().values, order[cut:].sort().values


def by_lstsq(
    x: Tensor, target: Tensor, anchor: Tensor, ridge: float, intercept: bool
) -> tuple[Tensor, Tensor]:
    """Ridge regression towards ``anchor`` as one least-squares problem with more rows."""
    tokens, columns = x.shape
    pull = (tokens * ridge) ** 0.5 * torch.eye(columns, dtype=DOUBLE)
    ones = torch.ones(tokens, 1, dtype=DOUBLE)
    zeros = torch.zeros(columns, 1, dtype=DOUBLE)
    if intercept:
        x, pull = torch.cat([x, ones], 1), torch.cat([pull, zeros], 1)
    rows = torch.cat([x, pull])
    sides = torch.cat([target, (tokens * ridge) ** 0.5 * anchor.T])
    solution = torch.linalg.lstsq(rows, sides, driver="gelsd").solution
    if not intercept:
        return solution.T, torch.zeros(len(anchor), dtype=DOUBLE)
    return solution[:-1].T, solution[-1]


@given(problems, st.sampled_from([1e-3, 1e-2, 1.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_least_squares_equals_lstsq_on_the_anchored_problem(
    sizes: tuple[int, int, int], ridge: float, intercept: bool
) -> None:
    outputs, columns, seed = sizes
    x, weight, e = inputs_of(40, columns, seed), draw(outputs, columns, seed=seed), None
    e = draw(40, outputs, seed=seed + 9)
    stay, gone = divided_columns(columns, seed)
    spread = x - x.mean(0) if intercept else x
    strength = ridge * float(spread.square().mean(0).mean())
    problem = LeastSquares(weight, moments_of(x, e, centred=intercept), stay, gone)
    own, drift = problem.solve(ridge)
    for beta in (0.0, 0.5, 1.0):
        change = own.blend(drift, beta)
        target = x @ weight.T + beta * e
        expected, bias = by_lstsq(x[:, stay], target, weight[:, stay], strength, intercept)
        found = weight[:, stay] + change.weight
        scale = 1 + float(expected.abs().max())
        assert float((found - expected).abs().max()) < 1e-6 * scale
        if intercept:
            assert float((change.bias - bias).abs().max()) < 1e-5 * (1 + float(bias.abs().max()))


def test_nothing_pruned_changes_nothing() -> None:
    x, weight = inputs_of(40, 6), draw(4, 6)
    everything, nothing = torch.arange(6), torch.arange(0)
    for intercept in (False, True):
        found = moments_of(x, centred=intercept)
        own, drift = LeastSquares(weight, found, everything, nothing).solve(0.01)
        assert drift is None
        assert not own.weight.any() and not own.bias.any()


def test_bias_makes_the_mean_error_zero() -> None:
    x, weight, e = inputs_of(50, 7), draw(4, 7), draw(50, 4, seed=3)
    stay, gone = divided_columns(7, 3)
    own, drift = bias_correction(weight, moments_of(x, e), stay, gone)
    assert not own.weight.any()
    error = (x @ weight.T + e) - (x[:, stay] @ weight[:, stay].T + own.blend(drift, 1.0).bias)
    assert float(error.mean(0).abs().max()) < 1e-12


def test_a_singular_matrix_is_factored_with_jitter() -> None:
    x = draw(1, 6)
    lower = factor(x.T @ x)
    torch.testing.assert_close(lower @ lower.T, x.T @ x, atol=1e-6, rtol=1e-6)
    assert float(factor(torch.zeros(3, 3, dtype=DOUBLE)).diagonal().min()) > 0
