"""flap, activation, block-influence and llm-bip-adjoint against direct float64 definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.criteria import load_criterion, options_of
from bipline.compression.criteria.draws import random_signs
from bipline.compression.criteria.interface import Block, Tokens
from bipline.model.block_loop import Activations
from bipline.model.families import ModelShape
from tests.observed import SEQLEN, feed_forward, observed, scores_of, sums_of

INPUTS = {
    "attention": ("attention_output", "self_attn.o_proj.weight"),
    "ffn": ("ffn_activation", "mlp.down_proj.weight"),
}


def grouped(channels: list[float], groups: int) -> list[float]:
    width = len(channels) // groups
    return [sum(channels[g * width : (g + 1) * width]) for g in range(groups)]


@pytest.mark.parametrize("metric", ["wifv", "ifv", "wifn"])
@pytest.mark.parametrize("squared", [True, False])
def test_flap_is_its_definition(family_model: Path, metric: str, squared: bool) -> None:
    block, activations, _ = observed(family_model)
    expected: dict[str, list[float]] = {}
    for kind, (name, matrix) in INPUTS.items():
        inputs, weight = activations[name], block.weights[matrix]
        channels = []
        for j in range(inputs.shape[1]):
            variance = float(((inputs[:, j] - inputs[:, j].mean()) ** 2).mean())
            channels.append(
                {
                    "wifv": variance * float((weight[:, j] ** 2).sum()),
                    "ifv": variance,
                    "wifn": float(weight[:, j].abs().mean() * (inputs[:, j] ** 2).mean().sqrt()),
                }[metric]
            )
        expected[kind] = channels
    if squared:
        expected["attention"] = [value**2 for value in expected["attention"]]
    scores = scores_of("flap", block, activations, metric=metric, square_attention=squared)
    groups = grouped(expected["attention"], block.shape.num_key_value_heads)
    torch.testing.assert_close(scores.attention_groups.tolist(), groups, rtol=1e-9, atol=0)
    torch.testing.assert_close(scores.ffn_channels.tolist(), expected["ffn"], rtol=1e-9, atol=0)


def worked_block() -> tuple[Block, Activations]:
    """Two heads of two channels, two FFN channels, three tokens: small enough for a pencil."""
    shape = ModelShape(
        hidden_size=2, intermediate_size=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=2, num_hidden_layers=1, vocab_size=4, tie_word_embeddings=True,
    )  # fmt: skip
    weights = {
        "self_attn.o_proj.weight": torch.tensor([[1.0, 0, 2, 1], [0, 3, 1, 1]]),
        "mlp.down_proj.weight": torch.tensor([[1.0, 2], [2, 0]]),
    }
    activations = {
        "attention_output": torch.tensor([[1.0, 2, 0, 1], [2, 2, 3, 1], [3, 2, 0, 4]]),
        "ffn_activation": torch.tensor([[0.0, 6], [3, 0], [0, 3]]),
    }
    return Block(0, shape, weights), activations


def test_flap_of_a_block_worked_by_hand() -> None:
    """Variances 2/3, 0, 2, 2 and 2, 6; squared column norms 1, 9, 5, 2 and 5, 4.

    Channels of attention: 2/3, 0, 10, 4, squared 4/9, 0, 100, 16; heads 4/9 and 116.
    Channels of the FFN: 2 * 5 = 10 and 6 * 4 = 24.
    """
    block, activations = worked_block()
    tokens = Tokens(activations, seqlen=3)
    options = options_of("flap")
    criterion = load_criterion("flap")
    scores = criterion.score(criterion.observe(block, tokens, options), block, options)
    torch.testing.assert_close(
        scores.attention_groups.tolist(), [4 / 9, 116.0], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(scores.ffn_channels.tolist(), [10.0, 24.0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("tokens_by", ["mean", "l2"])
@pytest.mark.parametrize("windows_by", ["mean", "l2"])
def test_activation_is_its_definition(family_model: Path, tokens_by: str, windows_by: str) -> None:
    block, activations, _ = observed(family_model)
    head_dim, groups = block.shape.head_dim, block.shape.num_key_value_heads

    def over(values: Tensor, how: str) -> float:
        return float(values.mean() if how == "mean" else (values**2).mean().sqrt())

    def size(values: Tensor) -> float:
        windows = values.split(SEQLEN)
        return over(torch.tensor([over(w, tokens_by) for w in windows]).double(), windows_by)

    attention = activations["attention_output"]
    heads = [
        size(attention[:, h * head_dim : (h + 1) * head_dim].norm(dim=1))
        for h in range(block.shape.num_attention_heads)
    ]
    scores = scores_of("activation", block, activations, tokens_by=tokens_by, windows_by=windows_by)
    torch.testing.assert_close(
        scores.attention_groups.tolist(), grouped(heads, groups), rtol=1e-6, atol=0
    )
    channels = [size(column.abs()) for column in activations["ffn_activation"].T]
    torch.testing.assert_close(scores.ffn_channels.tolist(), channels, rtol=1e-6, atol=0)


@pytest.mark.parametrize("metric", ["cosine", "relative-norm", "relative-norm-l1"])
def test_block_influence_is_its_definition(family_model: Path, metric: str) -> None:
    """The block's output is the loop's own, not what is added up from observed parts."""
    block, activations, output = observed(family_model)

    def influence(before: Tensor, after: Tensor) -> float:
        values = []
        for one, other in zip(before, after, strict=True):
            if metric == "cosine":
                values.append(1 - float(one @ other / (one.norm() * other.norm())))
            else:
                order = 1 if metric.endswith("l1") else 2
                values.append(float((other - one).norm(order) / one.norm(order)))
        return sum(values) / len(values)

    start, middle = activations["hidden"], activations["residual"]
    whole = scores_of("block-influence", block, activations, metric=metric)
    expected = influence(start, output)
    for scores in (whole.attention_groups, whole.ffn_channels):
        assert len(scores) in (block.shape.num_key_value_heads, block.shape.intermediate_size)
        torch.testing.assert_close(set(scores.tolist()).pop(), expected, rtol=1e-6, atol=1e-9)
    parts = scores_of("block-influence", block, activations, metric=metric, of="sublayers")
    for values, pair in (
        (parts.attention_groups, (start, middle)),
        (parts.ffn_channels, (middle, output)),
    ):
        torch.testing.assert_close(
            values.tolist(), [influence(*pair)] * len(values), rtol=1e-6, atol=1e-9
        )


# -- llm-bip-adjoint ---------------------------------------------------------------------------


def true_first_order(block: Block, activations: Activations) -> Tensor:
    """sqrt(mean over tokens of ||(I + J) Wo[:, C] o||^2) by automatic differentiation."""
    residual, attention = activations["residual"], activations["attention_output"]
    weight, values = block.weights["self_attn.o_proj.weight"], []
    for group in range(block.shape.num_key_value_heads):
        columns = slice(group * block.group_width, (group + 1) * block.group_width)
        change = attention[:, columns] @ weight[:, columns].T
        _, moved = torch.func.jvp(
            lambda h: h + biased_feed_forward(block, h), (residual,), (change,)
        )
        values.append(moved.square().sum(1).mean().sqrt())
    return torch.stack(values)


def biased_feed_forward(block: Block, hidden: Tensor) -> Tensor:
    weight = block.weights
    norm = hidden * (hidden.square().mean(-1, keepdim=True) + block.rms_norm_eps).rsqrt()
    inner = norm * weight["post_attention_layernorm.weight"]
    gate, up = (
        inner @ weight[f"mlp.{name}_proj.weight"].T + weight.get(f"mlp.{name}_proj.bias", 0)
        for name in ("gate", "up")
    )
    return (torch.nn.functional.silu(gate) * up) @ weight["mlp.down_proj.weight"].T


def repeated(activations: Activations, times: int) -> Activations:
    return {name: value.repeat(times, 1) for name, value in activations.items()}


def test_adjoint_estimates_the_first_order_change(family_model: Path) -> None:
    """The same 80 tokens 125 times over, each time with other signs: 10,000 tokens, 4 probes."""
    block, activations, _ = observed(family_model)
    many = repeated(activations, 125)
    assert len(many["residual"]) == 10_000
    estimate = scores_of("llm-bip-adjoint", block, many, probes=4).attention_groups
    torch.testing.assert_close(estimate, true_first_order(block, activations), rtol=0.05, atol=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 6))
def test_adjoint_summed_over_all_signs_is_exact(seed: int, width: int) -> None:
    """Over every sign vector the mean square is the exact square, with no sampling left."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    shape = ModelShape(
        hidden_size=width, intermediate_size=5, num_attention_heads=2, num_key_value_heads=2,
        head_dim=3, num_hidden_layers=1, vocab_size=4, tie_word_embeddings=True,
    )  # fmt: skip
    weights = {
        "self_attn.o_proj.weight": draw(width, 6),
        "mlp.gate_proj.weight": draw(5, width),
        "mlp.up_proj.weight": draw(5, width),
        "mlp.down_proj.weight": draw(width, 5),
        "post_attention_layernorm.weight": draw(width),
    }
    block, residual = Block(0, shape, weights), draw(1, width)
    inner = residual * (residual.square().mean() + block.rms_norm_eps).rsqrt()
    inner = inner * weights["post_attention_layernorm.weight"]
    gate, up = inner @ weights["mlp.gate_proj.weight"].T, inner @ weights["mlp.up_proj.weight"].T
    activations = {
        "residual": residual, "attention_output": draw(1, 6), "gate": gate, "up": up,
        "ffn_activation": torch.nn.functional.silu(gate) * up,
    }  # fmt: skip
    from bipline.compression.criteria.llm_bip_adjoint import _Adjoint

    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * width).view(-1, width)
    adjoint = _Adjoint(block, Tokens(activations, 1))
    moved = (adjoint(signs) * activations["attention_output"]).unflatten(1, (2, 3)).sum(-1)
    squares = moved.square().mean(0)
    torch.testing.assert_close(squares.sqrt(), true_first_order(block, activations))


def test_adjoint_draws_by_place_and_not_by_batch(llama: Path) -> None:
    block, activations, _ = observed(llama)
    whole = sums_of("llm-bip-adjoint", block, activations)
    name = next(name for name in whole if name.startswith("probed"))
    last = {key: value[-SEQLEN:] for key, value in activations.items()}
    first = {key: value[:-SEQLEN] for key, value in activations.items()}
    windows = len(activations["residual"]) // SEQLEN
    parts = sums_of("llm-bip-adjoint", block, first)[name]
    moved = sums_of("llm-bip-adjoint", block, last, first_window=windows - 1)[name]
    torch.testing.assert_close(parts + moved, whole[name], rtol=1e-12, atol=0)
    elsewhere = sums_of("llm-bip-adjoint", block, last, first_window=0)[name]
    assert not torch.allclose(parts + elsewhere, whole[name], rtol=1e-3)


def test_signs_are_fair_and_independent() -> None:
    places = torch.arange(4096)
    signs = random_signs(places, 96, seed=7)
    assert set(signs.unique().tolist()) == {-1, 1}
    # A mean of 4096 fair signs has a standard deviation of 1/64; five of them are chance enough.
    assert float(signs.double().mean(0).abs().max()) < 5 / 64
    correlation = signs.double().T @ signs.double() / len(places) - torch.eye(96).double()
    assert float(correlation.abs().max()) < 6 / 64
    assert signs[10:20].equal(random_signs(places[10:20], 96, seed=7))
    other = random_signs(places, 96, seed=8)
    assert abs(float((signs * other).double().mean())) < 5 / 600


def test_probes_and_seed_are_part_of_what_is_saved() -> None:
    reads = {
        load_criterion("llm-bip-adjoint").reads(options_of("llm-bip-adjoint", seed, given))
        for seed, given in ((0, {}), (1, {}), (0, {"probes": 2}))
    }
    assert len(reads) == 3


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "given", "words"),
    [
        ("flap", {"metric": "wivf"}, "option metric=wivf: input should be 'wifv', 'ifv' or 'wifn'"),
        (
            "flap",
            {"metrics": "ifv"},
            "criterion flap has no option 'metrics'; its options: metric, square_attention",
        ),
        ("llm-bip-adjoint", {"probes": "0"}, "option probes=0"),
        ("llm-bip", {"probes": "1"}, "has no option 'probes'; its options: none"),
    ],
)
def test_wrong_options_are_named(criterion: str, given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        options_of(criterion, 0, given)


def test_feed_forward_without_biases_is_the_special_case(llama: Path) -> None:
    block, activations, _ = observed(llama)
    hidden = activations["residual"]
    torch.testing.assert_close(biased_feed_forward(block, hidden), feed_forward(block, hidden))
