"""Criteria against direct float64 definitions, on every family and head layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.compression.computing import Computing
from bipline.compression.criteria import CRITERIA, load_criterion, needs_of, options_of
from bipline.compression.criteria.interface import Block, Sums
from bipline.compression.score import score_model
from bipline.compression.windows import Windows
from bipline.model.block_loop import Activations, BlockLoop
from bipline.model.families import ModelShape
from bipline.model.opening import open_checkpoint
from tests.observed import (
    SEQLEN,
    feed_forward,
    observed,
    scores_of,
    sums_of,
    without_columns,
)
from tests.tiny import token_windows


def without_channel(model: Path, index: int, channel: int) -> Tensor:
    """The block's output when one FFN channel is removed."""
    return without_columns(model, index, "mlp.down_proj.weight", slice(channel, channel + 1))


@pytest.mark.parametrize("criterion", ["llm-bip", "llm-bip-glu", "llm-bip-exact"])
def test_ffn_score_is_the_true_change_of_the_blocks_output(
    family_model: Path, criterion: str
) -> None:
    block, activations, output = observed(family_model)
    scores = scores_of(criterion, block, activations).ffn_channels
    for channel in (0, 7, 39):
        change = without_channel(family_model, 1, channel) - output
        true = change.square().sum(1).mean().sqrt()
        torch.testing.assert_close(scores[channel].double(), true, rtol=1e-6, atol=0)


def test_llm_bip_attention_score_is_its_definition(family_model: Path) -> None:
    block, activations, _ = observed(family_model)
    shape, weight = block.shape, block.weights
    propagation = torch.eye(shape.hidden_size, dtype=torch.float64) + (
        weight["mlp.down_proj.weight"].abs() @ weight["mlp.up_proj.weight"].abs()
    )
    width = shape.head_dim * shape.queries_per_group
    expected = torch.zeros(shape.num_key_value_heads, dtype=torch.float64)
    for channel in range(shape.num_attention_heads * shape.head_dim):
        rms = activations["attention_output"][:, channel].square().mean().sqrt()
        column = weight["self_attn.o_proj.weight"][:, channel].abs()
        expected[channel // width] += rms * (propagation @ column).sum()
    actual = scores_of("llm-bip", block, activations).attention_groups
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)


def test_exact_score_is_the_true_change_when_a_group_goes(family_model: Path) -> None:
    """The block is run again with the group's columns of o_proj at zero."""
    block, activations, output = observed(family_model)
    scores = scores_of("llm-bip-exact", block, activations).attention_groups
    width = block.shape.head_dim * block.shape.queries_per_group
    for group in range(block.shape.num_key_value_heads):
        columns = slice(group * width, (group + 1) * width)
        change = without_columns(family_model, 1, "self_attn.o_proj.weight", columns) - output
        true = change.square().sum(1).mean().sqrt()
        torch.testing.assert_close(scores[group].double(), true, rtol=1e-6, atol=0)


def test_wanda_is_its_definition(family_model: Path) -> None:
    block, activations, _ = observed(family_model)
    scores = scores_of("wanda-sp", block, activations)
    attention, ffn = (
        torch.stack([
            block.weights[name][:, channel].double().abs().mean() * values[:, channel].norm()
            for channel in range(values.shape[1])
        ]) / len(values) ** 0.5
        for name, values in (
            ("self_attn.o_proj.weight", activations["attention_output"].double()),
            ("mlp.down_proj.weight", activations["ffn_activation"].double()),
        )
    )  # fmt: skip
    torch.testing.assert_close(scores.ffn_channels, ffn, rtol=1e-6, atol=0)
    grouped = attention.view(block.shape.num_key_value_heads, -1).sum(1)
    torch.testing.assert_close(scores.attention_groups, grouped, rtol=1e-6, atol=0)


def test_magnitude_is_column_norms(family_model: Path) -> None:
    block, activations, _ = observed(family_model)
    scores = scores_of("magnitude", block, activations)
    width = block.shape.head_dim * block.shape.queries_per_group
    columns = block.weights["self_attn.o_proj.weight"].double()
    expected = [
        sum(float(columns[:, c].norm()) for c in range(g * width, (g + 1) * width))
        for g in range(block.shape.num_key_value_heads)
    ]
    torch.testing.assert_close(scores.attention_groups.tolist(), expected, rtol=1e-6, atol=0)
    down = block.weights["mlp.down_proj.weight"]
    torch.testing.assert_close(scores.ffn_channels.double(), down.double().norm(dim=0))


def test_random_depends_on_seed_and_block_alone(llama: Path) -> None:
    block, _activations, _ = observed(llama)
    criterion = load_criterion("random")
    again = Block(block.index, block.shape, {})
    other = Block(block.index + 1, block.shape, {})
    first = criterion.score({}, block, options_of("random", 3)).ffn_channels
    assert first.equal(criterion.score({}, again, options_of("random", 3)).ffn_channels)
    assert not first.equal(criterion.score({}, block, options_of("random", 4)).ffn_channels)
    assert not first.equal(criterion.score({}, other, options_of("random", 3)).ffn_channels)


# -- llm-bip-glu bounds the true change for heads, token by token -------------------------------


def drawn_block(
    seed: int, hidden: int, intermediate: int, groups: int
) -> tuple[Block, Activations]:
    """A random block and one token: what attention gave and what stood on the residual stream."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        heavy = torch.randn(size, generator=generator, dtype=torch.float64)
        return heavy * torch.rand(size, generator=generator, dtype=torch.float64).exp()

    shape = ModelShape(
        hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=groups,
        num_key_value_heads=groups, head_dim=4, num_hidden_layers=1, vocab_size=8,
        tie_word_embeddings=True,
    )  # fmt: skip
    weights = {
        "self_attn.o_proj.weight": draw(hidden, 4 * groups) * 0.3,
        "mlp.gate_proj.weight": draw(intermediate, hidden) * 0.3,
        "mlp.up_proj.weight": draw(intermediate, hidden) * 0.3,
        "mlp.down_proj.weight": draw(hidden, intermediate) * 0.3,
        "post_attention_layernorm.weight": draw(hidden).abs() + 0.1,
    }
    attention = draw(1, 4 * groups)
    residual = draw(1, hidden) + attention @ weights["self_attn.o_proj.weight"].T
    inner = residual * residual.square().mean(-1, keepdim=True).rsqrt()
    inner = inner * weights["post_attention_layernorm.weight"]
    gate, up = inner @ weights["mlp.gate_proj.weight"].T, inner @ weights["mlp.up_proj.weight"].T
    activations = {
        "attention_output": attention,
        "residual": residual,
        "gate": gate,
        "up": up,
        "ffn_activation": torch.nn.functional.silu(gate) * up,
    }
    return Block(0, shape, weights), activations


def group_change(block: Block, activations: Activations, group: int) -> Tensor:
    """What removing a group takes from the residual stream: ``[tokens, d]``."""
    width = block.shape.head_dim * block.shape.queries_per_group
    channels = slice(group * width, (group + 1) * width)
    columns = block.weights["self_attn.o_proj.weight"][:, channels]
    return -activations["attention_output"][:, channels] @ columns.T


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    hidden=st.integers(4, 24),
    intermediate=st.integers(4, 40),
    groups=st.integers(1, 4),
)
def test_glu_score_bounds_the_first_order_change_of_a_token(
    seed: int, hidden: int, intermediate: int, groups: int
) -> None:
    """With one token the averaged gains are that token's, so the bound must hold strictly.

    The score leaves out what the RMSNorm's derivative does along h; the bound has it as a second
    term, which is added here from its definition.
    """
    block, activations = drawn_block(seed, hidden, intermediate, groups)
    scores = scores_of("llm-bip-glu", block, activations).attention_groups
    residual = activations["residual"]
    for group in range(groups):
        change = group_change(block, activations, group)
        _, moved = torch.func.jvp(
            lambda h: h + feed_forward(block, h, eps=0.0), (residual,), (change,)
        )
        # |du| <= (|g|/r) (|d| + |h| (|h|.|d|) / (d r^2)): the second term is bounded apart.
        along = residual.abs() * (residual.abs() * change.abs()).sum() / residual.square().sum()
        slack = propagated(block, activations, along) - along.sum()
        assert moved.abs().sum() <= scores[group] + slack + 1e-9


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 3.0))
def test_elementwise_bound_holds_for_the_true_finite_change(seed: int, scale: float) -> None:
    """|dy| <= |d| + |Wd| (|silu(p)| |dq| + L |q| |dp| + L |dp| |dq|), L = max silu' = 1.0998."""
    block, activations = drawn_block(seed, hidden=12, intermediate=20, groups=3)
    weight, residual = block.weights, activations["residual"]
    steepest = 1.0998
    for group in range(3):
        change = scale * group_change(block, activations, group)
        moved = change + feed_forward(block, residual + change, 0.0)
        moved = moved - feed_forward(block, residual, 0.0)
        norms = [h * h.square().mean().rsqrt() for h in (residual + change, residual)]
        inner = ((norms[0] - norms[1]) * weight["post_attention_layernorm.weight"]).abs()
        up = inner @ weight["mlp.up_proj.weight"].abs().T
        gate = inner @ weight["mlp.gate_proj.weight"].abs().T
        passed = torch.nn.functional.silu(activations["gate"]).abs() * up
        passed = passed + steepest * (activations["up"].abs() * gate + gate * up)
        bound = change.abs() + passed @ weight["mlp.down_proj.weight"].abs().T
        assert bool((moved.abs() <= bound + 1e-9).all())


@pytest.mark.parametrize("criterion", ["llm-bip", "llm-bip-glu"])
def test_head_scores_bound_the_true_change_on_a_trained_model(
    reference: Path, criterion: str
) -> None:
    """On trained weights the slack is large, so even the averaged forms must lie above."""
    checkpoint = open_checkpoint(reference)
    loop = BlockLoop(checkpoint, torch.float64)
    seen: list[Activations] = []
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(checkpoint.shape.vocab_size, (4, 64), generator=generator)
    resident = loop.block(0)
    resident.run(loop.embed(windows), seen.append)
    block = Block(0, checkpoint.shape, resident.weights)
    scores = scores_of(criterion, block, seen[0]).attention_groups
    residual = seen[0]["residual"]
    for group, score in enumerate(scores):
        change = group_change(block, seen[0], group)
        moved = change + feed_forward(block, residual + change) - feed_forward(block, residual)
        assert float(score) >= float(moved.square().sum(1).mean().sqrt())


def propagated(block: Block, activations: Activations, change: Tensor) -> Tensor:
    """The L1 bound at the block's output of a residual change, from its definition: ``P |d|``."""
    gate, up = activations["gate"], activations["up"]
    weight = block.weights
    sigmoid = gate.sigmoid()
    rms = activations["residual"].square().mean(-1, keepdim=True).sqrt()
    scaled = weight["post_attention_layernorm.weight"].abs() * change.abs() / rms
    through_up = (gate * sigmoid).abs() * (scaled @ weight["mlp.up_proj.weight"].abs().T)
    slope = (sigmoid * (1 + gate * (1 - sigmoid)) * up).abs()
    through_gate = slope * (scaled @ weight["mlp.gate_proj.weight"].abs().T)
    moved = (through_up + through_gate) @ weight["mlp.down_proj.weight"].abs().T
    return change.abs().sum() + moved.sum()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31))
def test_glu_score_of_one_token_is_its_per_token_form(seed: int) -> None:
    block, activations = drawn_block(seed, hidden=12, intermediate=20, groups=3)
    scores = scores_of("llm-bip-glu", block, activations).attention_groups
    for group in range(3):
        channels = range(group * 4, group * 4 + 4)
        expected = sum(
            propagated(
                block,
                activations,
                activations["attention_output"][:, c : c + 1]
                * block.weights["self_attn.o_proj.weight"][:, c],
            )
            for c in channels
        )
        torch.testing.assert_close(scores[group], expected, rtol=1e-6, atol=0)


# -- additive sums -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in CRITERIA if needs_of(n).shareable])
def test_sums_add_up_over_chunks(llama: Path, name: str) -> None:
    block, activations, _ = observed(llama)
    whole = sums_of(name, block, activations)
    halves: Sums = {}
    for part in (slice(0, 2 * SEQLEN), slice(2 * SEQLEN, None)):
        half = {k: v[part] for k, v in activations.items()}
        sums = sums_of(name, block, half, part.start // SEQLEN)
        halves = {k: halves[k] + v if k in halves else v for k, v in sums.items()}
    assert set(whole) == set(halves) >= load_criterion(name).reads(options_of(name))
    for key, value in whole.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(halves[key], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["llm-bip", "llm-bip-glu"])
def test_statistics_do_not_depend_on_how_often_they_are_taken(llama: Path, name: str) -> None:
    checkpoint = open_checkpoint(llama)
    windows = Windows(token_windows(windows=40, seqlen=12), "", Computing())
    first, second = (score_model(checkpoint, windows, name, options_of(name))[0] for _ in range(2))
    for one, other in zip(first.blocks, second.blocks, strict=True):
        assert all(one[key].equal(other[key]) for key in one)
