"""Activations other than SiLU: the derivative is right, and criteria look through what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bipline.compression.criteria.interface import Block, Tokens
from bipline.compression.criteria.llm_bip_adjoint import _Adjoint
from bipline.compression.criteria.llm_bip_exact import FeedForward
from bipline.model.activations import value_and_slope
from bipline.model.block_loop import Activations
from bipline.model.config_keys import allowed_keys
from tests.observed import SEQLEN, observed, scores_of, sums_of, without_columns
from tests.tiny import tiny_model

NAMES = allowed_keys("llama")["hidden_act"].choices
STEP = 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_is_the_finite_difference(name: str) -> None:
    """Between the kinks of the functions that have some."""
    points = torch.arange(-40, 41, dtype=torch.float64) / 5 + 0.05
    value, slope = value_and_slope(name, points)
    above, below = (value_and_slope(name, points + side)[0] for side in (STEP, -STEP))
    torch.testing.assert_close(slope, (above - below) / (2 * STEP), rtol=1e-6, atol=1e-7)
    before = points.clone()
    value.add_(1), slope.add_(1)
    assert points.equal(before), "whoever writes into the result must not write into its argument"


@pytest.fixture(scope="module", params=["gelu", "relu2", "quick_gelu", "silu"])
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Block, Activations, Tensor]:
    folder = tmp_path_factory.mktemp("activations") / request.param
    model = tiny_model(folder, "llama-gqa", hidden_act=request.param)
    return model, *observed(model)


def test_exact_score_is_the_true_change_when_a_group_goes(
    seen: tuple[Path, Block, Activations, Tensor],
) -> None:
    model, block, activations, output = seen
    scores = scores_of("llm-bip-exact", block, activations).attention_groups
    for group in range(block.shape.num_key_value_heads):
        columns = slice(group * block.group_width, (group + 1) * block.group_width)
        change = without_columns(model, 1, "self_attn.o_proj.weight", columns) - output
        true = change.square().sum(1).mean().sqrt()
        torch.testing.assert_close(scores[group].double(), true, rtol=1e-6, atol=0)


def test_adjoint_product_is_automatic_differentiation(
    seen: tuple[Path, Block, Activations, Tensor],
) -> None:
    _, block, activations, _ = seen
    generator = torch.Generator().manual_seed(0)
    residual = activations["residual"]
    signs = torch.randn(residual.shape, generator=generator, dtype=torch.float64)
    feed_forward = FeedForward(block)
    _, through = torch.func.vjp(lambda h: h + feed_forward(h), residual)
    expected = through(signs)[0] @ block.weights["self_attn.o_proj.weight"]
    actual = _Adjoint(block, Tokens(activations, SEQLEN))(signs)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_the_gated_gains_are_those_of_the_model(
    seen: tuple[Path, Block, Activations, Tensor],
) -> None:
    """What the gate lets through is read off the model's own FFN, not off a formula."""
    _, block, activations, _ = seen
    sums = sums_of("llm-bip-glu", block, activations)
    passed = activations["ffn_activation"] / activations["up"]
    torch.testing.assert_close(
        sums["up_gain_squares"], passed.square().sum(0), rtol=1e-6, atol=1e-12
    )
    _, slope = value_and_slope(block.hidden_act, activations["gate"])
    expected = (slope * activations["up"]).square().sum(0)
    torch.testing.assert_close(sums["gate_gain_squares"], expected, rtol=1e-6, atol=1e-12)
