"""OBS: the greedy choice by enumeration, running weights by least squares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.compression.compensation import obs
from bipline.compression.compensation.closed_forms import LeastSquares
from bipline.compression.compensation.obs import elimination_of, remove_greedily
from tests.corrections import (
    DOUBLE,
    draw,
    inputs_of,
    moments_of,
)


def least_cost(weight: Tensor, regular: Tensor, importance: Tensor, gone: list[int]) -> float:
    """The least of 1/2 tr(D (W - W') H (W - W')^T) over all W' without some columns."""
    if not gone:
        return 0.0
    there = [j for j in range(len(regular)) if j not in gone]
    best = torch.zeros_like(weight)
    if there:
        cross = regular[gone][:, there]
        best[:, there] = weight[:, there] + weight[:, gone] @ cross @ torch.linalg.inv(
            regular[there][:, there]
        )
    change = weight - best
    return 0.5 * float((importance * (change @ regular @ change.T).diagonal()).sum())


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_greedy_choice_is_the_argmin_at_each_step(width: int, groups: int, seed: int) -> None:
    columns = width * groups
    weight, importance = draw(4, columns, seed=seed), draw(4, seed=seed).square() + 0.1
    given_second = moments_of(inputs_of(60, columns, seed)).second
    second = given_second.dense()
    regular = second + 1e-2 * second.diagonal().mean() * torch.eye(columns, dtype=DOUBLE)
    elimination = elimination_of(weight, given_second, 1e-2, width, importance)
    gone: list[int] = []
    for _ in range(groups - 1):
        before = least_cost(weight, regular, importance, gone)
        costs = elimination.costs()
        for group in range(groups):
            own = [*range(group * width, (group + 1) * width)]
            if own[0] in gone:
                assert float(costs[group]) == torch.inf
                continue
            expected = least_cost(weight, regular, importance, gone + own) - before
            assert float(costs[group]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        chosen = int(costs.argmin())
        elimination.remove(chosen)
        gone += range(chosen * width, (chosen + 1) * width)


@given(st.integers(1, 3), st.lists(st.integers(0, 2), min_size=2, max_size=3), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_of_each_run_so_many_go_and_the_cheapest_first(
    width: int, going: list[int], seed: int
) -> None:
    """Runs of three groups: each step is the argmin over those that may still lose one."""
    groups = 3 * len(going)
    weight, ones = draw(4, width * groups, seed=seed), torch.ones(4, dtype=DOUBLE)
    second = moments_of(inputs_of(90, width * groups, seed)).second
    dense = second.dense()
    regular = dense + 1e-2 * dense.diagonal().mean() * torch.eye(len(dense), dtype=DOUBLE)
    gone: list[int] = []

    def cost_with(group: int) -> float:
        columns = [g * width + place for g in [*gone, group] for place in range(width)]
        return least_cost(weight, regular, ones, columns)

    order = remove_greedily(elimination_of(weight, second, 1e-2, width), *going)
    for chosen in order:
        lost = [sum(each // 3 == run for each in gone) for run in range(len(going))]
        able = [g for g in range(groups) if g not in gone and lost[g // 3] < going[g // 3]]
        assert chosen == min(able, key=cost_with)
        gone.append(chosen)
    assert [sum(each // 3 == run for each in gone) for run in range(len(going))] == going


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("pending", [1, 4, 64])
def test_running_weights_are_the_least_squares_solution(
    width: int, pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs, "PENDING_COLUMNS", pending)
    weight = draw(5, 24)
    # Of one the inverse is being used up; the other is solved with.
    found, again = (moments_of(inputs_of(200, 24)) for _ in range(2))
    elimination = elimination_of(weight, found.second, 1e-2, width)
    running, gone = weight.clone(), []
    for _ in range(24 // width - 3):
        group = int(elimination.costs().argmin())
        own = [*range(group * width, (group + 1) * width)]
        running -= running[:, own] @ elimination.remove(group)
        gone += own
        stay = torch.tensor([j for j in range(24) if j not in gone])
        problem = LeastSquares(weight, again, stay, torch.tensor(sorted(gone)))
        expected = weight[:, stay] + problem.solve(1e-2)[0].weight
        assert float((running[:, stay] - expected).abs().max()) < 1e-8
        assert float(running[:, gone].abs().max()) < 1e-9


def test_a_group_goes_as_its_channels_together() -> None:
    weight, x = draw(5, 12), inputs_of(100, 12)
    together, single = (
        elimination_of(weight, moments_of(x).second, 1e-2, width) for width in (3, 1)
    )
    by_group, by_channel = weight.clone(), weight.clone()
    for group in (2, 0):
        own = [*range(group * 3, group * 3 + 3)]
        by_group -= by_group[:, own] @ together.remove(group)
        for channel in own:
            by_channel -= by_channel[:, [channel]] @ single.remove(channel)
    torch.testing.assert_close(by_group, by_channel, atol=1e-9, rtol=1e-9)


def test_waiting_updates_do_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = draw(5, 90), inputs_of(400, 90)
    orders = []
    for pending in (1, 7, 90):
        monkeypatch.setattr(obs, "PENDING_COLUMNS", pending)
        orders.append(remove_greedily(elimination_of(weight, moments_of(x).second, 1e-2, 1), 60))
    assert orders[0] == orders[1] == orders[2]
    assert len(set(orders[0])) == 60
