"""Policy gradient: its projection, and its estimate of the gradient by enumeration."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.compression.criteria import policy_gradient
from bipline.compression.criteria.interface import BlockScores
from bipline.compression.masks import (
    Masks,
    masked_losses,
)
from bipline.model.block_loop import BlockLoop
from tests.searches import STEP_TOKENS, WINDOWS, loop_of, searched

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


def few_masks(loop: BlockLoop, masks: list[tuple[int, ...]]) -> list[Masks]:
    """Masks of the first two groups of both blocks; everything else stays."""
    found = []
    for mask in masks:
        whole = Masks.dense(loop.checkpoint.shape)
        whole.attention_groups[:, :2] = torch.tensor(mask, dtype=torch.float64).view(2, 2)
        found.append(whole)
    return found


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("first", [True, False])
def test_policy_gradient_is_unbiased(llama: Path, samples: int, first: bool) -> None:
    """Its mean over all draws of masks equals the gradient of the expected loss, exactly."""
    masks = list(product((0, 1), repeat=4))
    losses = masked_losses(loop_of(llama), WINDOWS, few_masks(loop_of(llama), masks))
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
    return float(masked_losses(loop, WINDOWS, [Masks(*p) for p in zip(*drawn, strict=True)]).mean())


@pytest.mark.slow
def test_search_lowers_the_expected_loss(llama: Path) -> None:
    rates = {"attention_learning_rate": 0.05, "ffn_learning_rate": 0.05, "initial": "random"}
    _, before = searched(llama, "policy-gradient", tokens=2 * STEP_TOKENS, **rates)
    _, after = searched(llama, "policy-gradient", tokens=2 * STEP_TOKENS * 300, **rates)
    loop = loop_of(llama)
    assert expected_loss(loop, after.blocks) < expected_loss(loop, before.blocks) - 0.05
    for name in ("attention_groups", "ffn_channels"):
        kept = torch.cat([getattr(block, name) for block in after.blocks])
        assert float(kept.mean()) == pytest.approx(0.8, abs=1e-9)
