"""Searches over masks: their mathematics by enumeration, their promises on small models."""

from __future__ import annotations

import copy
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.test_gates import loop_of, plain_loss, random_gates
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.learn_thresholds import (
    kept_by,
    learn_thresholds,
    remaining_share,
)
from bipline.compression.computing import Computing
from bipline.compression.criteria import bi_level, options_of, policy_gradient
from bipline.compression.criteria.bi_level import Adapters, BiLevelOptions
from bipline.compression.criteria.interface import BlockScores
from bipline.compression.criteria.search import batches_of
from bipline.compression.masks import (
    ATTENTION_READER,
    FFN_READER,
    Gates,
    gate_gradients,
    gated_losses,
    top_gates,
)
from bipline.compression.score import Calibration, compute_scores, score_model
from bipline.compression.statistics import Scores, Statistics
from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from tests.tiny import token_windows

SEQLEN = 12
WINDOWS = token_windows(windows=6, seqlen=SEQLEN)
STEP_TOKENS = 4 * SEQLEN
SMALL = {
    "policy-gradient": {"tokens": 2 * STEP_TOKENS * 5},
    "bi-level": {"tokens": 2 * STEP_TOKENS * 5},
}


def searched(model: Path, criterion: str, **given: Any) -> tuple[Statistics, Scores]:
    batch = {"batch": 4} if criterion in SMALL else {}
    options = options_of(criterion, given.pop("seed", 0), {**batch, **given})
    calibration = Calibration(WINDOWS, "windows")
    return score_model(open_checkpoint(model), calibration, criterion, options, Computing())


# Projection.

values = st.lists(st.floats(-3, 3), min_size=1, max_size=12)


@given(values, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_projection_is_the_nearest_point_of_the_budget(given_values: list[float], share: float):  # type: ignore[no-untyped-def]
    point = torch.tensor(given_values, dtype=torch.float64)
    total = share * len(point)
    found = policy_gradient.project(point, total)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert float(found.sum()) == pytest.approx(total, abs=1e-9)
    # The conditions of Karush, Kuhn and Tucker, which the nearest point alone meets: all interior
    # entries moved alike, those at 0 no further down and those at 1 no further up.
    moved = point - found
    inner, low, high = (found > 1e-9) & (found < 1 - 1e-9), found <= 1e-9, found >= 1 - 1e-9
    least = torch.cat([moved[inner], moved[low], torch.tensor([-9.0])]).max()
    most = torch.cat([moved[inner], moved[high], torch.tensor([9.0])]).min()
    assert float(least) <= float(most) + 1e-8
    # And by brute force: no other point of the budget is nearer.
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        other = torch.rand(len(point), generator=generator, dtype=torch.float64)
        other = policy_gradient.project(other, total)
        assert (point - found).norm() <= (point - other).norm() + 1e-8


def test_projection_without_such_a_point() -> None:
    with pytest.raises(ValueError, match="cannot sum"):
        policy_gradient.project(torch.zeros(3), 3.5)


def test_start_is_the_sigmoid_of_standardised_scores() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0, 9.0], [5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
    found = policy_gradient.initial(scores, 0.5)
    mapped = torch.sigmoid((scores[0] - scores[0].mean()) / scores[0].std())
    torch.testing.assert_close(found[0], mapped + 0.5 - mapped.mean())
    assert found[1].tolist() == pytest.approx([0.5] * 4)
    over_all = policy_gradient.initial(scores, 0.5, by_block=False)
    assert over_all.flatten().argsort(stable=True).equal(scores.flatten().argsort(stable=True))
    # One group a block (MQA): nothing to standardise by.
    alone = policy_gradient.initial(scores[:, :1], 0.8)
    assert alone.flatten().tolist() == pytest.approx([0.8, 0.8])


# The estimate of the gradient, by enumeration.


def few_gates(loop: BlockLoop, masks: list[tuple[int, ...]]) -> list[Gates]:
    """Settings of the first two groups of both blocks; everything else stays open."""
    found = []
    for mask in masks:
        gates = Gates.opened(loop.checkpoint.shape)
        gates.attention_groups[:, :2] = torch.tensor(mask, dtype=torch.float64).view(2, 2)
        found.append(gates)
    return found


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_policy_gradient_is_unbiased(llama: Path, samples: int, first: bool) -> None:
    """Its mean over all draws of masks equals the gradient of the expected loss, exactly."""
    masks = list(product((0, 1), repeat=4))
    losses = gated_losses(loop_of(llama), WINDOWS, few_gates(loop_of(llama), masks))
    table = torch.tensor(masks, dtype=torch.float64)
    keep = torch.tensor([0.3, 0.9, 0.5, 0.75], dtype=torch.float64, requires_grad=True)
    chances = (table * keep + (1 - table) * (1 - keep)).prod(1)
    (exact,) = torch.autograd.grad(chances @ losses, keep)
    chances, keep = chances.detach(), keep.detach()
    mean = torch.zeros(4, dtype=torch.float64)
    for draw in product(range(len(masks)), repeat=samples):
        places = torch.tensor(draw)
        baseline = policy_gradient.Baseline(5)
        if not first:
            baseline.value = 3.7
        share = baseline.update(losses[places])
        advantages = losses[places] - baseline.value
        estimate = policy_gradient.gradient(advantages, table[places], keep, share)
        mean += chances[places].prod() * estimate
    assert float(exact.abs().max()) > 1e-3
    torch.testing.assert_close(mean, exact, rtol=1e-10, atol=1e-12)


def test_published_step_is_the_formula_of_the_code() -> None:
    keep = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    masks = torch.tensor([[0.0, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.float64)
    losses = torch.tensor([3.0, 3.5], dtype=torch.float64)
    baseline = policy_gradient.Baseline(5)
    baseline.value = 3.1
    share = baseline.update(losses)
    assert baseline.value == pytest.approx(0.8 * 3.1 + 0.2 * 3.25)
    advantages = losses - baseline.value
    found = policy_gradient.published(
        policy_gradient.gradient(advantages, masks, keep, share), keep, 2, share
    )
    scaled = (masks - keep) / ((keep + 1e-7) * (1 - keep + 1e-7)).sqrt()
    expected = (advantages[:, None] * scaled).sum(0) / (2 - 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_masks_are_drawn_with_their_probabilities() -> None:
    keep = torch.tensor([[0.0, 0.25], [0.9, 1.0]], dtype=torch.float64)
    masks = policy_gradient.drawn(keep, 4000, torch.Generator().manual_seed(0))
    assert masks.shape == (4000, 2, 2)
    torch.testing.assert_close(masks.mean(0), keep, rtol=0, atol=0.03)


def expected_loss(loop: BlockLoop, scores: tuple[BlockScores, ...]) -> float:
    """The expected loss of a policy, over draws that are the same for every policy."""
    generator = torch.Generator().manual_seed(1)
    kinds = [
        torch.stack([getattr(block, name) for block in scores])
        for name in ("attention_groups", "ffn_channels")
    ]
    drawn = [policy_gradient.drawn(keep, 200, generator) for keep in kinds]
    return float(gated_losses(loop, WINDOWS, [Gates(*p) for p in zip(*drawn, strict=True)]).mean())


def test_search_lowers_the_expected_loss(llama: Path) -> None:
    rates = {"attention_learning_rate": 0.05, "ffn_learning_rate": 0.05, "initial": "random"}
    _, before = searched(llama, "policy-gradient", tokens=2 * STEP_TOKENS, **rates)
    _, after = searched(llama, "policy-gradient", tokens=2 * STEP_TOKENS * 300, **rates)
    loop = loop_of(llama)
    assert expected_loss(loop, after.blocks) < expected_loss(loop, before.blocks) - 0.05
    for name in ("attention_groups", "ffn_channels"):
        kept = torch.cat([getattr(block, name) for block in after.blocks])
        assert float(kept.mean()) == pytest.approx(0.8, abs=1e-9)


# Bi-level.


def plain_reader_gradients(model: Any, gates: Gates, deltas: list[dict[str, Tensor]]) -> Any:
    """d loss / d (m * theta) of both matrices of every block, by plain back-propagation."""
    changed = copy.deepcopy(model)
    leaves = []
    for index, layer in enumerate(changed.model.layers):
        for name, linear, factors in (
            (ATTENTION_READER, layer.self_attn.o_proj, gates.attention_groups[index]),
            (FFN_READER, layer.mlp.down_proj, gates.ffn_channels[index]),
        ):
            columns = factors.repeat_interleave(linear.in_features // len(factors))
            theta = linear.weight.detach() + deltas[index][name]
            linear.weight = torch.nn.Parameter(theta * columns)
            leaves.append((theta, linear.weight, factors))
    gradients = torch.autograd.grad(plain_loss(changed, WINDOWS), [leaf[1] for leaf in leaves])
    return [(t, g, f) for (t, _, f), g in zip(leaves, gradients, strict=True)]


@pytest.mark.parametrize("trained", [True, False])
def test_bi_level_gradient_is_its_formula(family_model: Path, trained: bool) -> None:
    loop = loop_of(family_model)
    shape = loop.checkpoint.shape
    masks = random_gates(shape, 3, 0.6)
    options = BiLevelOptions(weights="lora" if trained else "frozen", rank=3, gamma=0.01)
    adapters = Adapters(shape, options)
    adapters.step(loop, WINDOWS, masks)
    found = bi_level.upper_gradients(loop, WINDOWS, masks, adapters if trained else None, 0.01)
    deltas = []
    for block in loop.blocks():
        theta = bi_level.merged(block.weights, adapters.leaves(block))
        deltas.append({n: (theta[n] - block.weights[n]) * trained for n in theta})
    plain = plain_reader_gradients(load_model(family_model, torch.float64), masks, deltas)
    for place, (theta, nabla, mask) in enumerate(plain):
        width = theta.shape[1] // len(mask)
        for group in range(len(mask)):
            columns = slice(group * width, (group + 1) * width)
            weights, gradient = theta[:, columns], nabla[:, columns]
            implicit = mask[group] * gradient / 0.01 if trained else 0.0
            expected = float(((weights - implicit) * gradient).sum())
            value = float(found[place % 2][place // 2, group])
            assert value == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_frozen_bi_level_gradient_is_that_of_the_gates(llama: Path) -> None:
    loop = loop_of(llama)
    masks = random_gates(loop.checkpoint.shape, 3, 0.6)
    found = bi_level.upper_gradients(loop, WINDOWS, masks, None, 10.0)
    _, expected = gate_gradients(loop, WINDOWS, masks)
    torch.testing.assert_close(found[0], expected.attention_groups, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(found[1], expected.ffn_channels, rtol=1e-9, atol=1e-13)


def test_lower_step_lowers_the_loss_of_the_masked_model(llama: Path) -> None:
    loop = loop_of(llama)
    masks = random_gates(loop.checkpoint.shape, 3, 0.6)
    adapters = Adapters(loop.checkpoint.shape, BiLevelOptions())
    losses = [adapters.step(loop, WINDOWS, masks) for _ in range(5)]
    assert losses[0] == pytest.approx(float(gated_losses(loop, WINDOWS, [masks])[0]))
    assert all(after < before for before, after in pairwise(losses))


def test_the_levels_see_different_windows() -> None:
    upper, lower = bi_level.divided(WINDOWS, 0, True)
    assert len(upper) + len(lower) == len(WINDOWS)
    assert not {tuple(w.tolist()) for w in upper} & {tuple(w.tolist()) for w in lower}
    with pytest.raises(InvalidInput, match="need at least 2"):
        bi_level.divided(WINDOWS[:1], 0, True)


def test_bi_level_lowers_the_loss_of_the_mask(llama: Path) -> None:
    given = {"weights": "frozen", "ratio": 0.5, "initial": "random", "learning_rate": 0.05}
    _, before = searched(llama, "random")
    _, after = searched(llama, "bi-level", tokens=60 * STEP_TOKENS, **given)
    masks = []
    for scores in (before, after):
        kinds = [
            torch.stack([getattr(block, name) for block in scores.blocks])
            for name in ("attention_groups", "ffn_channels")
        ]
        masks.append(Gates(*(top_gates(kind, 0.5) for kind in kinds)))
    losses = gated_losses(loop_of(llama), WINDOWS, masks)
    assert float(losses[1]) < float(losses[0]) - 0.1


# Learned thresholds.


def test_thresholds_meet_the_budget_and_repeat(family_model: Path) -> None:
    loop = BlockLoop(open_checkpoint(family_model))
    _, scores = searched(family_model, "wanda-sp")
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


# What every search promises.


@pytest.mark.parametrize("criterion", sorted(SMALL))
def test_a_search_that_starts_again_ends_with_the_same_bytes(
    family_model: Path, criterion: str
) -> None:
    statistics, first = searched(family_model, criterion, **SMALL[criterion])
    _, again = searched(family_model, criterion, **SMALL[criterion])
    _, other = searched(family_model, criterion, seed=1, **SMALL[criterion])
    differences = 0
    for one, two, three in zip(first.blocks, again.blocks, other.blocks, strict=True):
        for name, tensor in one.tensors().items():
            assert tensor.equal(two.tensors()[name])
            differences += int((tensor != three.tensors()[name]).sum())
    assert differences
    assert statistics.blocks == ({}, {})
    assert (statistics.calibration_digest, statistics.dtype) == ("windows", "float32")
    with pytest.raises(InvalidInput, match=r"search over the whole model.* score again"):
        compute_scores(open_checkpoint(family_model), statistics, criterion, options_of(criterion))


@pytest.mark.parametrize("criterion", sorted(SMALL))
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": 10}, "tokens=10: one step of the search runs 96 tokens"),
        ({"initial": "bi-level"}, "is itself a search"),
        ({"initial": "best"}, "criterion 'best' is unknown"),
        ({"ratio": 1.0}, "option ratio=1.0"),
    ],
)
def test_senseless_options(
    llama: Path, criterion: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        searched(llama, criterion, **given)


def test_every_window_comes_once_before_any_comes_again() -> None:
    batches = list(batches_of(WINDOWS, 2, 6, seed=3))
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat(epoch).tolist()) == sorted(WINDOWS.tolist())
    assert len(next(batches_of(WINDOWS, 100, 1, seed=0))) == len(WINDOWS)
