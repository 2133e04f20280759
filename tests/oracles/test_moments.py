"""Moments of inputs: however tokens are divided, and how many there must be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.compensation import triangles
from bipline.compression.compensation.moments import MomentSums, moments_bytes
from bipline.compression.compensation.tokens import check_tokens, least_samples
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import ModelShape
from tests.corrections import (
    CPU,
    DOUBLE,
    WINDOWS,
    corrected,
    draw,
    inputs_of,
    moments_of,
    whole,
)


@given(st.integers(1, 9), st.integers(2, 30), st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=50, deadline=None)
def test_moments_do_not_depend_on_how_tokens_are_divided(
    columns: int, tokens: int, cuts: list[int]
) -> None:
    x, e, weights = inputs_of(tokens, columns), draw(tokens, 3, seed=7), draw(tokens).square() + 0.1
    sums = MomentSums(columns, 3, CPU)
    for part in torch.arange(tokens).tensor_split(sorted(cuts)):
        sums.add(x[part], weights[part], e[part])
    found, shares = sums.moments(), weights / weights.sum()
    torch.testing.assert_close(found.second.dense(), x.T @ (shares[:, None] * x))
    torch.testing.assert_close(found.mean, shares @ x)
    torch.testing.assert_close(found.drift, e.T @ (shares[:, None] * x))
    torch.testing.assert_close(found.drift_mean, shares @ e)
    assert found.tokens == tokens


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.booleans())
@settings(max_examples=50, deadline=None)
def test_moments_that_were_given_can_be_added_to(
    columns: int, first: int, second: int, centred: bool
) -> None:
    tokens = first + second
    x, e, weights = inputs_of(tokens, columns), draw(tokens, 3, seed=7), draw(tokens).square() + 0.1
    sums = MomentSums(columns, 3, CPU)
    sums.add(x[:first], weights[:first], e[:first])
    given_first = sums.moments(centred=centred)
    given_first.second.factor(1.0)
    given_first.second.invert()
    sums.add(x[first:], weights[first:], e[first:])
    found, expected = sums.moments(centred=centred), moments_of(x, e, weights, centred)
    torch.testing.assert_close(found.second.dense(), expected.second.dense())
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.drift, expected.drift)
    torch.testing.assert_close(found.drift_mean, expected.drift_mean)


def test_moments_are_taken_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs_of(20, 11)
    for name in ("TILE_COLUMNS", "STRIP_COLUMNS"):
        monkeypatch.setattr(triangles, name, 2)
    torch.testing.assert_close(moments_of(x).second.dense(), x.T @ x / 20)


def test_bytes_of_moments() -> None:
    for products in (torch.float32, DOUBLE):
        sums = MomentSums(13, 5, CPU, products)
        held = sum(tensor.nbytes for tensor in vars(sums).values() if isinstance(tensor, Tensor))
        held += vars(sums)["_second"].upper.untyped_storage().nbytes()
        assert moments_bytes(13, 5, products.itemsize) == held


def test_moments_that_are_not_finite() -> None:
    with pytest.raises(InvalidInput, match="block 0: activations are not finite"):
        moments_of(torch.full((3, 2), torch.inf, dtype=DOUBLE))


def test_too_few_tokens_are_refused_with_the_number(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    plan = whole(checkpoint)
    # Four windows of 24 are 72 tokens to fit on, one is held out; 40 channels need 80.
    with pytest.raises(InvalidInput, match=r"40 columns on 72 tokens; it needs 80, .* 5 samples"):
        corrected(checkpoint, plan, "least-squares", WINDOWS[:4])
    corrected(checkpoint, plan, "least-squares", WINDOWS[:5])


@given(st.integers(1, 300), st.integers(2, 40), st.floats(0, 0.9))
@settings(max_examples=50, deadline=None)
def test_the_number_of_samples_that_is_named_is_the_least(
    columns: int, seqlen: int, held_out: float
) -> None:
    shape = ModelShape(
        vocab_size=9, hidden_size=8, intermediate_size=columns, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=1, tie_word_embeddings=False,
    )  # fmt: skip
    least = least_samples(shape, seqlen, held_out)
    check_tokens(shape, least, seqlen, held_out)
    for fewer in range(max(2, least - 5), least):
        with pytest.raises(InvalidInput, match=f"at least {least} samples"):
            check_tokens(shape, fewer, seqlen, held_out)
