"""A block of a tiny model as criteria see it, and slow ways to run it again without a group."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bipline.compression.criteria import load_criterion, options_of
from bipline.compression.criteria.interface import Block, BlockScores, Sums, Tokens
from bipline.model.block_loop import Activations, BlockLoop
from bipline.model.opening import open_checkpoint
from tests.tiny import token_windows

SEQLEN = 16
WINDOWS = token_windows(windows=5, seqlen=SEQLEN)


def observed(model: Path, index: int = 1) -> tuple[Block, Activations, Tensor]:
    """A block of a model in float64, what is seen in it on all windows, and its outputs."""
    checkpoint = open_checkpoint(model)
    loop = BlockLoop(checkpoint, torch.float64)
    hidden = loop.embed(WINDOWS)
    for before in range(index):
        hidden = loop.block(before).run(hidden)
    seen: list[Activations] = []
    resident = loop.block(index)
    output = resident.run(hidden, seen.append)
    joined = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
    return Block.of(checkpoint, index, resident.weights), joined, output.flatten(0, 1)


def feed_forward(block: Block, hidden: Tensor, eps: float = 1e-6) -> Tensor:
    """The FFN half of a block on the residual stream, without biases: ``[tokens, d]``."""
    weight = block.weights
    norm = hidden * (hidden.square().mean(-1, keepdim=True) + eps).rsqrt()
    inner = norm * weight["post_attention_layernorm.weight"]
    gate = inner @ weight["mlp.gate_proj.weight"].T
    up = inner @ weight["mlp.up_proj.weight"].T
    return (torch.nn.functional.silu(gate) * up) @ weight["mlp.down_proj.weight"].T


def scores_of(name: str, block: Block, activations: Activations, **options: object) -> BlockScores:
    criterion = load_criterion(name)
    sums = sums_of(name, block, activations, **options) if criterion.NEEDS.shareable else {}
    return criterion.score(sums, block, options_of(name, 0, options))


def sums_of(
    name: str, block: Block, activations: Activations, first_window: int = 0, **options: object
) -> Sums:
    tokens = Tokens(activations, SEQLEN, first_window)
    return load_criterion(name).observe(block, tokens, options_of(name, 0, options))


def without_columns(model: Path, index: int, name: str, columns: slice) -> Tensor:
    """The block's output when nothing is read from some inputs of a projection."""
    loop = BlockLoop(open_checkpoint(model), torch.float64)
    hidden = loop.embed(WINDOWS)
    for before in range(index):
        hidden = loop.block(before).run(hidden)
    block = loop.block(index)
    weight = block.weights[name].clone()
    weight[:, columns] = 0
    block.replace({name: weight})
    return block.run(hidden).flatten(0, 1)
