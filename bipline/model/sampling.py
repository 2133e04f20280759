"""Sampling: windows of the model's own text, a token at a time, block by block.

Keys and values of all blocks stay in memory, so that every token passes each block once. Blocks
that there is no room for are read again for every token, as they are for every pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor
from transformers import DynamicCache

from bipline.base.progress import track
from bipline.model.block_loop import Block, BlockLoop
from bipline.model.block_reader import block_shapes, place_elements
from bipline.model.products import usual_float32
from bipline.model.shapes import ModelShape

# Keys and values that may be in memory at a time; windows beyond that wait for the next turn.
CACHE_BYTES = 1 << 30


@usual_float32()
@torch.no_grad()
def sampled_windows(
    loop: BlockLoop, opening: Tensor, seqlen: int, seed: int = 0, room: float = 0
) -> Tensor:
    """Windows ``[windows, seqlen]`` that begin with the tokens ``opening`` ``[windows]``.

    Every further token is drawn from what the model predicts behind those before it, at
    temperature 1. Blocks are read anew for every token, but for those that ``room`` bytes hold.
    Raises InvalidInput for windows that the model cannot take.
    """
    loop.check(opening[:, None].expand(-1, seqlen))
    generator = torch.Generator().manual_seed(seed)
    turns = opening.split(windows_together(loop.checkpoint.shape, seqlen, loop.dtype.itemsize))
    held = _held_blocks(loop, room)
    parts = []
    for number, turn in enumerate(turns, 1):
        named = f"sample text, {number} of {len(turns)}" if len(turns) > 1 else "sample text"
        parts.append(_sampled(loop, held, turn, track(range(seqlen - 1), named), generator))
    return torch.cat(parts)


def sampling_bytes(shape: ModelShape, windows: int, seqlen: int, itemsize: int) -> int:
    """Bytes of one turn's keys and values and of the output weights; 0 for no windows."""
    if not windows:
        return 0
    together = min(windows, windows_together(shape, seqlen, itemsize))
    output = shape.vocab_size * shape.hidden_size * itemsize
    return output + together * cached_bytes(shape, seqlen, itemsize)


def windows_together(shape: ModelShape, seqlen: int, itemsize: int) -> int:
    """How many windows are sampled in one turn, at least one."""
    return max(1, CACHE_BYTES // cached_bytes(shape, seqlen, itemsize))


def cached_bytes(shape: ModelShape, tokens: int, itemsize: int) -> int:
    """Bytes of the keys and values of so many tokens, in all blocks."""
    heads = shape.num_attention_heads if shape.caches_queries else shape.num_key_value_heads
    width = heads * shape.head_dim
    return 2 * shape.num_hidden_layers * tokens * width * itemsize


def _held_blocks(loop: BlockLoop, room: float) -> list[Block]:
    """The first blocks, as many as there is room for."""
    each = place_elements(block_shapes(loop.checkpoint)) * loop.dtype.itemsize
    count = min(loop.checkpoint.shape.num_hidden_layers, int(room // each))
    return [loop.block(index) for index in range(count)]


def _sampled(
    loop: BlockLoop,
    held: list[Block],
    opening: Tensor,
    positions: Iterable[int],
    generator: torch.Generator,
) -> Tensor:
    """The windows of one turn, a token longer for every position."""
    cache = DynamicCache()
    others = range(len(held), loop.checkpoint.shape.num_hidden_layers)
    output = loop.output_weight()
    tokens = opening[:, None]
    for position in positions:
        hidden = loop.embed(tokens[:, -1:], position)
        for block in chain(held, loop.blocks(others) if others else ()):
            hidden = loop.forward(block.index, block.weights, hidden, cache, position)
        chances = loop.token_logits(hidden[:, 0], output).softmax(-1).cpu()
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return tokens
