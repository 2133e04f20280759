"""Perplexity through the block loop against the plain transformers loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.perplexity import perplexity, text_windows
from tests.conftest import ASSETS

TEXT = (ASSETS / "texts" / "prose.txt").read_text(encoding="utf-8")


def plain_perplexity(model: Path, windows: torch.Tensor) -> float:
    loaded = load_model(model, torch.float32)
    with torch.no_grad():
        logits = loaded(windows).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    return math.exp(float(losses))


@pytest.mark.parametrize("bos", ["none", "text", "window"])
@pytest.mark.parametrize("seqlen", [17, 64, 128])
def test_block_loop_equals_transformers(reference: Path, seqlen: int, bos: str) -> None:
    windows = text_windows(load_tokenizer(reference), [TEXT], seqlen, bos)  # type: ignore[arg-type]
    measured = perplexity(BlockLoop(open_checkpoint(reference)), windows, "text")
    assert measured.tokens == windows.shape[0] * (seqlen - 1)
    assert measured.value == pytest.approx(plain_perplexity(reference, windows), rel=1e-5)


def test_bos_policies_place_the_bos(reference: Path) -> None:
    tokenizer = load_tokenizer(reference)
    none, text, window = (
        text_windows(tokenizer, [TEXT], 32, bos)  # type: ignore[arg-type]
        for bos in ("none", "text", "window")
    )
    bos = tokenizer.bos_token_id
    assert int((none == bos).sum()) == 0
    assert int((text == bos).sum()) == 1
    assert int(text[0, 0]) == bos
    assert bool((window[:, 0] == bos).all())
    assert text[0, 1:].equal(none[0, :-1])


def test_text_is_joined_and_tokenised_once(reference: Path) -> None:
    tokenizer = load_tokenizer(reference)
    joined = text_windows(tokenizer, ["one two", "three four five six"], 4, "none")
    whole = text_windows(tokenizer, ["one two\n\nthree four five six"], 4, "none")
    assert joined.equal(whole)


def test_short_text_is_refused(reference: Path) -> None:
    with pytest.raises(InvalidInput, match="shorter than one window of 128"):
        text_windows(load_tokenizer(reference), ["too short"], 128, "none")


@pytest.mark.slow
def test_record_of_a_real_text(data: Path) -> None:
    """stories260K on stories it never saw: its perplexity is known to be near 5."""
    from bipline.quality.evaluate import evaluate
    from bipline.settings.protocol import Protocol

    record = evaluate(
        data / "models" / "stories260K",
        Protocol(seqlen=128),
        {"tinystories": data / "text" / "tinystories.valid.txt"},
        {},
    )
    assert 4 < record.perplexity["tinystories"].value < 6
    assert record.protocol["texts"]["tinystories"]
    assert record.environment["torch"]
