"""Drawn windows: weights are fitted on them, and nothing is chosen by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bipline.compression.compensation import collecting, drawn_windows
from bipline.compression.compensation.collecting import token_weights
from bipline.compression.compensation.drawn_windows import (
    divided_with_drawn,
    random_share,
    random_windows,
    special_tokens,
    unknown_share,
)
from bipline.compression.compensation.engine import BlockCorrection
from bipline.compression.compensation.moments import Moments
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import divided
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import Halves
from bipline.model.opening import open_checkpoint
from bipline.model.sampling import sampled_windows
from bipline.values.compensation import Compensation
from tests.corrections import COMPUTING, WINDOWS, corrected, narrowed
from tests.tiny import tiny_model

DOWN = "mlp.down_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_model(tmp_path_factory.mktemp("model") / "llama", "llama-gqa"))


def halved(
    checkpoint: Checkpoint, compensation: Compensation, **options: Any
) -> list[BlockCorrection]:
    return corrected(checkpoint, narrowed(checkpoint), compensation, **options)


@given(st.integers(1, 20), st.floats(0, 1), st.integers(1, 50), st.frozensets(st.integers(0, 60)))
@settings(max_examples=50, deadline=None)
def test_as_many_as_asked_and_none_that_is_left_out(
    windows: int, share: float, vocab_size: int, left_out: frozenset[int]
) -> None:
    known = set(range(vocab_size)) - left_out
    assume(known)
    token_ids = torch.zeros(windows, 7, dtype=torch.int64)
    drawn = random_windows(token_ids, share, vocab_size, left_out)
    assert drawn.shape == (round(share * windows), 7)
    assert set(drawn.flatten().tolist()) <= known
    assert drawn.equal(random_windows(token_ids, share, vocab_size, left_out))


def test_where_the_text_shows_its_words_there_are_none() -> None:
    options = CompensationOptions(random_windows=0.5)
    fitted = torch.arange(50)[None]
    known, strange = fitted.repeat(2, 1), torch.full((2, 50), 7)
    strange[0, :2] = 60
    assert unknown_share(fitted, known) == 0
    assert unknown_share(fitted, strange) == pytest.approx(0.02)
    for compensation in ("least-squares", "obs"):
        assert random_share(compensation, options, fitted, known) == 0
        assert random_share(compensation, options, fitted, strange) == 0.5
    assert random_share("bias", options, fitted, strange) == 0


def test_special_tokens_are_those_of_the_config() -> None:
    config = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": None, "vocab_size": 9}
    assert special_tokens(config) == {1, 2, 5}
    assert special_tokens({}) == frozenset()


def test_generated_windows_are_the_models_own_text(checkpoint: Checkpoint) -> None:
    loop, options = BlockLoop(checkpoint), CompensationOptions(generated_windows=0.75)
    there = divided_with_drawn(loop, WINDOWS, "obs", options)
    count, seqlen = round(0.75 * len(there.fitted)), WINDOWS.shape[1]
    assert there.generated.shape == (count, seqlen)
    special = special_tokens(checkpoint.config)
    opening = random_windows(there.fitted[:, :1], 0.75, checkpoint.shape.vocab_size, special)[:, 0]
    assert there.generated.equal(sampled_windows(loop, opening, seqlen))
    assert torch.cat([there.random, there.generated]).equal(there.drawn)
    assert there.tokens == sum(map(Tensor.numel, (there.fitted, there.held, there.drawn)))


@pytest.mark.parametrize(("compensation", "share"), [("bias", 1.0), ("none", 1.0), ("obs", 0.0)])
def test_none_are_generated_where_none_are_fitted_on(
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    compensation: Compensation,
    share: float,
) -> None:
    monkeypatch.setattr(drawn_windows, "sampled_windows", None)
    options = CompensationOptions(generated_windows=share)
    assert not len(
        divided_with_drawn(BlockLoop(checkpoint), WINDOWS, compensation, options).generated
    )


def test_fits_are_on_both_and_choices_on_calibration_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block's moments, asked for by the choice and then by the fit, by brute force."""
    found: list[Tensor] = []
    plain = collecting.Collector.moments

    def recorded(self: collecting.Collector, centred: bool) -> Moments:
        moments = plain(self, centred)
        found.append(moments.second.dense())
        return moments

    monkeypatch.setattr(collecting.Collector, "moments", recorded)
    halved(checkpoint, "obs", sequential=False, random_windows=1.0)
    loop = BlockLoop(checkpoint, torch.float64)
    options = CompensationOptions(random_windows=1.0)
    there = divided_with_drawn(COMPUTING.loop(checkpoint), WINDOWS, "obs", options)
    assert len(there.random) and len(there.generated)
    block = Halves.of(next(iter(loop.blocks())))
    fitted, _ = divided(WINDOWS, 0.1)
    for windows, attention, ffn in (
        (fitted, found[0], found[2]),
        (torch.cat([fitted, there.drawn]), found[1], found[3]),
    ):
        hidden = loop.embed(windows)
        residual = block.after_attention(hidden)
        cases = (
            (attention, block.attention_output(hidden), residual),
            (ffn, block.ffn_activation(residual), block.after_ffn(residual, hidden)),
        )
        for second, inputs, target in cases:
            x, weights = inputs.flatten(0, 1), token_weights(target.flatten(0, 1), 1e-6)
            expected = x.T @ (weights.double()[:, None] * x) / weights.sum()
            torch.testing.assert_close(second, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["random_windows", "generated_windows"])
def test_they_change_weights_and_not_what_stays(checkpoint: Checkpoint, kind: str) -> None:
    without, among = (
        halved(checkpoint, "obs", sequential=False, **{kind: share}) for share in (0.0, 1.0)
    )
    differ = []
    for a, b in zip(without, among, strict=True):
        assert a.record.ffn is not None and b.record.ffn is not None
        if (a.record.ffn.form, b.record.ffn.form) == ("obs", "obs"):
            assert a.plan.ffn_channels == b.plan.ffn_channels
            differ.append(not a.tensors[DOWN].equal(b.tensors[DOWN]))
    assert differ and all(differ)


def test_a_bias_is_the_mean_of_calibration_alone(checkpoint: Checkpoint) -> None:
    without, among = (
        halved(checkpoint, "bias", random_windows=share, generated_windows=share)
        for share in (0.0, 1.0)
    )
    for a, b in zip(without, among, strict=True):
        assert a.tensors.keys() == b.tensors.keys() != set()
        assert all(a.tensors[name].equal(b.tensors[name]) for name in a.tensors)
