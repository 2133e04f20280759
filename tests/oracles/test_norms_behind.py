"""Norms behind sublayers: what criteria see of such a block, against direct definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.compression.criteria.interface import INPUTS, OUTPUT_MATRICES, Block, Tokens
from bipline.compression.criteria.norms import RmsNorm
from bipline.model.activations import value_and_slope
from bipline.model.block_loop import Activations
from bipline.model.builds import build_named
from tests.compression.test_measuring_allocations import check_block_errors
from tests.observed import SEQLEN, observed, scores_of
from tests.tiny import tiny_model

CASES = ("gemma2", "gemma3-text", "glm4", "olmo2", "exaone4")


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("behind") / request.param, request.param)


def held(block: Block, seen: Activations) -> tuple[Block, Activations]:
    """The block whose matrices hold the gains behind them, on inputs that hold what it divides by.

    As :class:`Block` says it; no norm is behind anything then.
    """
    tokens = Tokens(seen, SEQLEN)
    weights = {name: block.output_matrix(part) for part, name in OUTPUT_MATRICES.items()}
    inputs = {name: block.output_inputs(part, tokens) for part, name in INPUTS.items()}
    norms = {**build_named("decoder").norms}
    plain = replace(block, weights={**block.weights, **weights}, norms=norms)
    return plain, {**seen, **inputs}


def test_what_a_sublayer_adds_is_its_matrix_on_its_inputs(model: Path) -> None:
    """With the gain and the root mean square that the dense model has; by transformers' block."""
    block, seen, output = observed(model)
    plain, inputs = held(block, seen)
    added = {"attention": seen["residual"] - seen["hidden"], "ffn": output - seen["residual"]}
    for part, name in OUTPUT_MATRICES.items():
        found = inputs[INPUTS[part]] @ plain.weights[name].T
        if (bias := block.weights.get(name.replace("weight", "bias"))) is not None:
            scale = block.output_scale(part, Tokens(seen, SEQLEN))
            found = found + scale * block.norm_behind(part).scaled(bias[:, None])[:, 0]
        torch.testing.assert_close(found, added[part], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("criterion", "options"),
    [("wanda-sp", {}), ("magnitude", {}), ("flap", {}), ("flap", {"metric": "ifv"})],
)
def test_cheap_scores_are_those_of_the_block_with_its_norms_held(
    model: Path, criterion: str, options: dict[str, Any]
) -> None:
    block, seen, _ = observed(model)
    found = scores_of(criterion, block, seen, **options)
    expected = scores_of(criterion, *held(block, seen), **options)
    torch.testing.assert_close(found.attention_groups, expected.attention_groups)
    torch.testing.assert_close(found.ffn_channels, expected.ffn_channels)
    assert not torch.allclose(
        found.ffn_channels, scores_of(criterion, replaced(block), seen, **options).ffn_channels
    )


def replaced(block: Block) -> Block:
    """The same block as if nothing were normed behind."""
    return replace(block, norms=build_named("decoder").norms)


def test_bounds_of_attention_are_their_definitions(model: Path) -> None:
    """Channel by channel, through every matrix at once, with both root mean squares held."""
    block, seen, _ = observed(model)
    plain, inputs = held(block, seen)
    weights, before = plain.weights, block.norm_before("ffn")
    up, gate, down = (weights[f"mlp.{name}_proj.weight"].abs() for name in ("up", "gate", "down"))
    scale = block.output_scale("ffn", Tokens(seen, SEQLEN))
    value, slope = value_and_slope(block.hidden_act, seen["gate"])
    gains = [(each * scale).square().mean(0).sqrt() for each in (value, slope * seen["up"])]
    gain = torch.ones(len(down)) if before.gain is None else before.gain.abs()
    norm = gain * before.inverse(seen["residual"]).mean()
    identity = torch.eye(len(down), dtype=torch.float64)
    reach = {
        "llm-bip": identity + scale.mean() * down @ up,
        "llm-bip-glu": identity + (down * gains[0] @ up + down * gains[1] @ gate) * norm,
    }
    for criterion, through in reach.items():
        rms = inputs["attention_output"].square().mean(0).sqrt()
        channels = rms * (through @ weights["self_attn.o_proj.weight"].abs()).sum(0)
        expected = channels.view(block.shape.num_key_value_heads, -1).sum(1)
        found = scores_of(criterion, block, seen).attention_groups
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_block_errors_are_those_of_the_block_run_again(model: Path) -> None:
    check_block_errors(model)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    share=st.sampled_from([1e-6, 1e-3, 1.0, 100.0]),
    centred=st.booleans(),
)
def test_column_changes_are_what_the_norm_gives_without_the_column(
    seed: int, share: float, centred: bool
) -> None:
    """Columns that count for little too: what is left of two near numbers is not rounding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    norm = RmsNorm(draw(7), 1e-6, centred)
    matrix, inputs, rest = draw(7, 5), share * draw(6, 5), draw(6, 7)
    hidden = inputs @ matrix.T + rest
    found = norm.column_changes(hidden, inputs, matrix)
    for column in range(5):
        part = inputs[:, column : column + 1] * matrix[:, column]
        expected = (norm(hidden - part) - norm(hidden)).square().sum(1)
        torch.testing.assert_close(found[:, column], expected, rtol=1e-5, atol=1e-22)
