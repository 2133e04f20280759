"""Sampling: the cached way, a token at a time, is the plain one, with all tokens at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.model import sampling
from bipline.model.block_loop import BlockLoop
from bipline.model.block_reader import block_shapes, place_elements
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.sampling import sampled_windows
from tests.tiny import tiny_model

OPENING = torch.tensor([3, 9, 4])
SEQLEN = 9


@torch.no_grad()
def by_definition(folder: Path, opening: Tensor, seed: int) -> Tensor:
    """Draws from transformers' own logits of all tokens before, in float64."""
    model, generator = load_model(folder, torch.float64), torch.Generator().manual_seed(seed)
    tokens = opening[:, None]
    for _ in range(SEQLEN - 1):
        chances = model(tokens, use_cache=False).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
    return tokens


def test_every_token_is_drawn_from_what_the_model_predicts(family_model: Path) -> None:
    loop = BlockLoop(open_checkpoint(family_model), torch.float64)
    drawn = sampled_windows(loop, OPENING, SEQLEN, seed=4)
    assert drawn.equal(by_definition(family_model, OPENING, seed=4))
    assert not drawn.equal(sampled_windows(loop, OPENING, SEQLEN, seed=5))


@pytest.mark.parametrize("case", ["opt", "gpt2", "bloom"])
def test_single_tokens_know_their_place(case: str, tmp_path: Path) -> None:
    """Positions that are learned, or that attention's scores fall by."""
    model = tiny_model(tmp_path / "model", case)
    drawn = sampled_windows(BlockLoop(open_checkpoint(model), torch.float64), OPENING, SEQLEN, 4)
    assert drawn.equal(by_definition(model, OPENING, seed=4))


@pytest.mark.parametrize("case", ["gpt-neox", "falcon", "falcon-new"])
def test_as_many_bytes_as_a_cache_has(case: str, tmp_path: Path) -> None:
    """Falcon's class of several KV heads keeps them for every query head."""
    model = tiny_model(tmp_path / "model", case)
    built = load_model(model, torch.float64)
    with torch.no_grad():
        cache = built(OPENING[None], use_cache=True).past_key_values
    held = sum(each.keys.nbytes + each.values.nbytes for each in cache.layers)
    assert sampling.cached_bytes(open_checkpoint(model).shape, len(OPENING), 8) == held


def test_a_turn_holds_what_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = BlockLoop(open_checkpoint(tiny_model(tmp_path / "model", "llama-gqa")), torch.float64)
    shape = loop.checkpoint.shape
    one = sampling.cached_bytes(shape, SEQLEN, 8)
    monkeypatch.setattr(sampling, "CACHE_BYTES", 2 * one + 1)
    assert sampling.windows_together(shape, SEQLEN, 8) == 2
    output = shape.vocab_size * shape.hidden_size * 8
    needs = [sampling.sampling_bytes(shape, windows, SEQLEN, 8) for windows in range(4)]
    assert needs == [0, output + one, output + 2 * one, output + 2 * one]
    drawn = sampled_windows(loop, OPENING, SEQLEN)
    assert drawn.shape == (3, SEQLEN)
    assert drawn[:, 0].equal(OPENING)
    assert drawn[:2].equal(sampled_windows(loop, OPENING[:2], SEQLEN))


@pytest.mark.parametrize("blocks", [1.5, 100])
def test_blocks_that_are_held_give_the_same_text(tmp_path: Path, blocks: float) -> None:
    loop = BlockLoop(open_checkpoint(tiny_model(tmp_path / "model", "llama-gqa")), torch.float64)
    one = 8 * place_elements(block_shapes(loop.checkpoint))
    drawn = sampled_windows(loop, OPENING, SEQLEN, room=blocks * one)
    assert drawn.equal(sampled_windows(loop, OPENING, SEQLEN))


def test_windows_longer_than_the_positions_are_refused(tmp_path: Path) -> None:
    loop = BlockLoop(open_checkpoint(tiny_model(tmp_path / "model", "llama-gqa")))
    longest = loop.around.config.max_position_embeddings
    with pytest.raises(InvalidInput, match=f"seqlen {longest + 1} is longer"):
        sampled_windows(loop, OPENING, longest + 1)
