"""Allocations against brute force and their sources' formulas, and what they promise."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import ALLOCATIONS, allocation_options, load_allocation
from bipline.compression.allocation.knapsack import Part, cheapest
from bipline.compression.allocation.log_increase import log_share
from bipline.compression.allocation.problem import Layout, Problem
from bipline.compression.allocation.shares import filled, scaled_to_budget
from bipline.compression.allocation.split import uniform_candidates
from bipline.compression.allocation.standardized import _by_rank, z_scores
from bipline.compression.allocation.widths import (
    Choices,
    Widths,
    choices_of,
    of_query_heads,
    whole,
)
from bipline.compression.criteria.interface import BlockScores, Unit
from bipline.compression.options import BaseOptions
from bipline.compression.statistics import Scores
from bipline.model.families import ModelShape

# Those that look at scores alone; those that run windows are tested on models.
PURE = ["log-increase", "standardized", "uniform"]


def shape(groups: int, queries: int, ffn: int, layers: int = 4) -> ModelShape:
    return ModelShape(
        hidden_size=32, intermediate_size=ffn, num_attention_heads=groups * queries,
        num_key_value_heads=groups, head_dim=8, num_hidden_layers=layers, vocab_size=8,
        tie_word_embeddings=True,
    )  # fmt: skip


def problem_of(
    choices: list[Choices],
    ratio: float,
    layout: Layout = "per-layer",
    seed: int = 0,
    prunes: Unit = "groups",
) -> Problem:
    """A problem with random scores and no model behind it."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for each in choices:
        width = each.shape.num_attention_heads * each.shape.head_dim
        attention = torch.rand(width, generator=generator).double()
        ffn = torch.rand(each.shape.intermediate_size, generator=generator).double()
        if prunes != "groups":
            attention, ffn = attention[:1].expand(width), ffn[:1].expand(len(ffn))
        scores = BlockScores.of_channels(attention, ffn, each.shape)
        blocks.append(scores)
    scores_of_all = Scores("", "random", tuple(blocks), {}, prunes)
    return Problem(cast("Any", None), scores_of_all, layout, ratio, tuple(choices))


@st.composite
def problems(draw: st.DrawFn, multiples: tuple[int, ...] = (1, 2, 4, 8)) -> Problem:
    """Blocks of one shape, the first perhaps kept whole, and a ratio that can be reached."""
    block = shape(draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(16, 60)))
    free = choices_of(block, draw(st.sampled_from(multiples)))
    kept, layers = draw(st.integers(0, 1)), draw(st.integers(2, 6))
    choices = [whole(block)] * kept + [free] * (layers - kept)
    most = sum(each.most_removed for each in choices) / (layers * block.block_weights)
    ratio = most * draw(st.floats(0.02, 0.999))
    return problem_of(choices, ratio, seed=draw(st.integers(0, 1000)))


def removed(problem: Problem, widths: list[Widths]) -> float:
    pairs = zip(problem.choices, widths, strict=True)
    return sum(each.removed_weights(choices.shape) for choices, each in pairs)


@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("allocation", PURE)
@given(problem=problems())
def test_the_budget_is_met_within_one_step(allocation: str, problem: Problem) -> None:
    widths = load_allocation(allocation).widths(problem, allocation_options(allocation))
    steps = []
    for choices, each in zip(problem.choices, widths, strict=True):
        assert each.attention_groups in choices.attention_groups
        assert each.ffn_units in choices.ffn_units
        kinds = (
            (choices.attention_groups, each.attention_groups, choices.shape.group_weights),
            (choices.ffn_units, each.ffn_units, choices.shape.channel_weights),
        )
        for allowed, count, weight in kinds:
            gaps = [(b - a) * weight for a, b in itertools.pairwise(allowed)]
            steps += gaps if count != allowed[-1] else []
    over = removed(problem, widths) - problem.target
    assert -1e-5 <= over < max(steps)


@settings(max_examples=100, deadline=None)
@given(problem=problems(), data=st.data())
def test_filled_follows_the_losses_it_was_given(problem: Problem, data: st.DataObject) -> None:
    weights = data.draw(
        st.lists(st.floats(0.1, 5.0), min_size=len(problem.choices), max_size=len(problem.choices))
    )
    losses = scaled_to_budget(weights, problem)
    assert sum(losses) == pytest.approx(problem.target, rel=1e-6)
    capped = [
        loss for loss, each in zip(losses, problem.choices, strict=True)
        if loss < each.most_removed - 1e-6
    ]  # fmt: skip
    factors = [
        loss / weight
        for loss, weight, each in zip(losses, weights, problem.choices, strict=True)
        if loss < each.most_removed - 1e-6
    ]
    assert not capped or max(factors) == pytest.approx(min(factors), rel=1e-6)
    widths = filled(problem, losses)
    for loss, each, choices in zip(losses, widths, problem.choices, strict=True):
        step = max(choices.shape.group_weights, 8 * choices.shape.channel_weights)
        assert abs(each.removed_weights(choices.shape) - loss) <= 2 * step


def test_log_increase_is_slimgpts_schedule() -> None:
    """.0625 and .25 are its published ends for 20 %; ln(1+l)/ln(L) between them."""
    shares = [0.0625 * log_share(index, 32, 4.0) for index in range(32)]
    assert shares[0] == pytest.approx(0.0625)
    assert shares[-1] == pytest.approx(0.25)
    for index, share in enumerate(shares):
        assert share == pytest.approx(0.0625 + 0.1875 * math.log(1 + index) / math.log(32))


@settings(max_examples=60, deadline=None)
@given(problem=problems(multiples=(1,)))
def test_standardized_is_flaps_single_threshold(problem: Problem) -> None:
    """Its code: all z of all blocks in one sorted list, cut where the kept cost is reached."""
    widths = load_allocation("standardized").widths(problem, allocation_options("standardized"))
    entries = []
    for block, (scores, choices) in enumerate(
        zip(problem.scores.blocks, problem.choices, strict=True)
    ):
        groups, channels = z_scores(scores)
        weights = choices.shape.group_weights, choices.shape.channel_weights
        if not choices.most_removed:
            continue
        if len(choices.attention_groups) > 1:
            entries += [(float(z), block, 0, weights[0]) for z in groups.sort().values[:-1]]
        entries += [(float(z), block, 1, weights[1]) for z in channels.sort().values[:-1]]
    expected = [[each.attention_groups[-1], each.ffn_units[-1]] for each in problem.choices]
    gone = 0.0
    for _, block, kind, weight in sorted(entries):
        if gone >= problem.target:
            break
        gone += weight
        expected[block][kind] -= 1
    assert [[each.attention_groups, each.ffn_units] for each in widths] == expected


def test_z_scores_by_hand() -> None:
    """Channels 1 2 3 6 have mean 3 and standard deviation sqrt(3.5); heads are means of two."""
    scores = BlockScores.of_channels(
        torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([4.0, 4.0]), shape(2, 1, 2)
    )
    scores = BlockScores(
        scores.attention_groups[:2], scores.ffn_channels, scores.attention_channels
    )
    groups, channels = z_scores(scores)
    root = math.sqrt(3.5)
    assert groups.tolist() == pytest.approx([-1.5 / root, 1.5 / root])
    assert channels.tolist() == [0.0, 0.0]


PARTS = st.lists(
    st.lists(st.tuples(st.integers(0, 12), st.floats(0, 10)), min_size=1, max_size=4).map(
        lambda pairs: Part(tuple(4 * w for w, _ in pairs), tuple(e for _, e in pairs))
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(parts=PARTS, share=st.floats(0, 1))
def test_knapsack_equals_brute_force(parts: list[Part], share: float) -> None:
    target = share * sum(max(part.removed) for part in parts)
    chosen = cheapest(parts, target)

    def figures(choice: tuple[int, ...]) -> tuple[float, int]:
        pairs = list(zip(parts, choice, strict=True))
        return sum(p.errors[i] for p, i in pairs), sum(p.removed[i] for p, i in pairs)

    every = itertools.product(*[range(len(part.removed)) for part in parts])
    best = min(figures(c)[0] for c in every if figures(c)[1] >= target - 1e-9)
    error, gone = figures(tuple(chosen))
    assert gone >= target - 1e-6
    assert error == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("allocation", ["standardized", "uniform"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100), ratio=st.floats(0.1, 0.6), heads=st.booleans())
def test_uniform_layout_gives_every_block_the_same(
    allocation: str, seed: int, ratio: float, heads: bool
) -> None:
    free = choices_of(shape(4, 3, 48), 2)
    choices = [of_query_heads(free) if heads else free] * 3
    problem = problem_of(choices, ratio, "uniform", seed)
    widths = load_allocation(allocation).widths(problem, allocation_options(allocation))
    assert len(set(widths)) == 1
    assert removed(problem, widths) >= problem.target - 1e-6
    assert not heads or widths[0].attention_groups == 4
    if allocation == "standardized":
        assert widths[0] in uniform_candidates(problem)


def test_query_heads_go_by_the_mean_z_of_the_lowest_of_every_group() -> None:
    """Two groups of two heads of one channel: 1 and 2 of the first, 3 and 6 of the second."""
    block = shape(2, 2, 4).model_copy(update={"head_dim": 1})
    scores = BlockScores.of_channels(
        torch.tensor([2.0, 1.0, 3.0, 6.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), block
    )
    choices = of_query_heads(choices_of(block, 1))
    root = math.sqrt(3.5)
    assert _by_rank(scores, block).tolist() == pytest.approx([-1 / root, 1 / root])
    # A channel has 96 weights, a head of both groups 128; of mean z -1.3, -0.4 and -0.5 is each.
    for weights, expected in ((1, Widths(2, 3)), (97, Widths(2, 3, 1)), (225, Widths(2, 2, 1))):
        ratio = weights / block.block_weights
        held = Scores("", "random", (scores,), {}, "groups")
        problem = Problem(cast("Any", None), held, "per-layer", ratio, (choices,))
        assert load_allocation("standardized").widths(problem, BaseOptions()) == [expected]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100),
    ratio=st.floats(0.05, 0.8),
    prunes=st.sampled_from(["blocks", "sublayers"]),
)
def test_depth_drops_the_lowest_units_and_no_more(seed: int, ratio: float, prunes: Unit) -> None:
    choices = [choices_of(shape(4, 1, 30), 1)] * 5
    problem = problem_of(choices, ratio, "per-layer", seed, prunes)
    widths = load_allocation("depth").widths(problem, allocation_options("depth"))
    gone = removed(problem, widths)
    assert gone >= problem.target
    assert any(each.attention_groups for each in widths)
    scores = {}
    for index, block in enumerate(problem.scores.blocks):
        scores[index, 1] = float(block.ffn_channels[0])
        scores[index, 0] = float(
            block.attention_groups[0] if prunes == "sublayers" else scores[index, 1]
        )
    dropped = {
        (index, kind)
        for index, each in enumerate(widths)
        for kind, count in enumerate((each.attention_groups, each.ffn_units))
        if count == 0
    }
    stay = set(scores) - dropped
    if sum(kind == 0 for _, kind in stay) > 1:  # otherwise the last attention was spared
        assert max(scores[unit] for unit in dropped) <= min(scores[unit] for unit in stay)
    last = max(dropped, key=lambda unit: scores[unit])
    part = choices[0].shape
    attention = part.num_key_value_heads * part.group_weights
    weight = part.block_weights if prunes == "blocks" else (
        attention if last[1] == 0 else part.block_weights - attention
    )  # fmt: skip
    assert gone - max(weight, attention) < problem.target


def test_depth_that_cannot_reach_names_the_largest() -> None:
    problem = problem_of([choices_of(shape(4, 1, 30), 1)] * 4, 0.9, "per-layer", 0, "blocks")
    with pytest.raises(InvalidInput, match=r"dropping blocks; the largest that can is 0\.75"):
        load_allocation("depth").widths(problem, allocation_options("depth"))


@pytest.mark.parametrize("groups", [3, 4])
def test_divisible_by_limits_both_counts(groups: int) -> None:
    found = choices_of(shape(groups, 2, 40), 4, divisible_by=2)
    assert found.attention_groups == ((2,) if groups == 3 else (2, 4))
    assert all(count % 2 == 0 for count in found.ffn_units)
    with pytest.raises(InvalidInput, match="divisible_by 5: no count of 4 KV heads divides"):
        choices_of(shape(4, 2, 40), 4, divisible_by=5)


def test_every_allocation_says_what_it_needs() -> None:
    for name in ALLOCATIONS:
        allocation = load_allocation(name)
        assert allocation.WINDOWS in (True, False)
        assert isinstance(allocation.NOT_UNIFORM, str)
