"""``learned``: BESA's differentiable allocation, applied to groups (arXiv 2402.16880, "-style").

per block:  keep_i = sum of beta_d over candidate shares p_d that spare group i,
            beta = softmax(theta), groups in the order of their scores; heads and channels each
            have their own theta
mask:       hard - keep.detach() + keep (straight-through); hard cuts alpha = sum_d beta_d p_d
loss:       ||y - y'||^2 / ||y||^2 + ``penalty`` * ((alpha_block - ratio) / ratio)^2
            y the dense block's output on dense inputs, y' the masked block's on pruned inputs

Blocks are learned in order, and what a block's pruned form gives feeds the next. Every block has
the same parameter budget; what is learned is its split between attention and FFN. With the uniform
layout the mean split over the blocks is taken.

Source: BESA prunes single weights, row by row, with Prodigy; its loss, penalty (5), straight-
through mask and sequential blocks are established, from its code. Groups in the place of weights,
one budget for two kinds, and Adam are a reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bipline.base.progress import track
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.shares import filled, scaled_to_budget
from bipline.compression.allocation.soft_masks import SoftMask
from bipline.compression.allocation.split import uniform_of_share
from bipline.compression.allocation.widths import Choices, Widths
from bipline.compression.masks import ATTENTION_READER, masked
from bipline.compression.options import BaseOptions, PositiveNumber
from bipline.model.block_loop import Block
from bipline.model.floor import Counted, forward_operations
from bipline.model.hidden_states import CHUNK_WINDOWS, HiddenStates
from bipline.model.shapes import ModelShape


class LearnedOptions(BaseOptions):
    """How long and how fast it learns, and how strictly the budget is held meanwhile."""

    steps: Annotated[int, Field(ge=1)] = 48
    learning_rate: PositiveNumber = 0.05
    penalty: PositiveNumber = 5.0
    samples: Annotated[int, Field(ge=1)] = 64


OPTIONS = LearnedOptions
WINDOWS = True
NOT_UNIFORM = ""


def widths(problem: Problem, options: LearnedOptions) -> list[Widths]:
    """Widths with the learned split of every block, or the uniform widths nearest to their mean."""
    equal = [float(choices.shape.block_weights) for choices in problem.choices]
    losses = scaled_to_budget(equal, problem)
    groups = list(_learned_groups(problem, losses, options))
    if problem.layout == "uniform":
        channels = problem.choices[0].ffn_units[-1]
        return uniform_of_share(problem, [Widths(count, channels) for count in groups])
    return filled(problem, losses, groups)


def operations(shape: ModelShape, options: LearnedOptions, windows: int, seqlen: int) -> Counted:
    """Floating-point operations: both streams' passes, and every block's steps on a chunk.

    A step's way back ends at o_proj's and down_proj's weights: it goes through the FFN's matrices
    to what they read, and to what these two read.
    """
    samples = min(windows, options.samples)
    chunk = min(samples, CHUNK_WINDOWS), seqlen
    attention = shape.num_attention_heads * shape.head_dim
    ffn = (shape.channel_weights + shape.hidden_size) * shape.intermediate_size
    back = 2.0 * (ffn + shape.hidden_size * attention) * math.prod(chunk) * shape.num_hidden_layers
    steps = options.steps * (forward_operations(shape, *chunk) + back)
    return Counted(2 * forward_operations(shape, samples, seqlen) + steps)


def _learned_groups(
    problem: Problem, losses: list[float], options: LearnedOptions
) -> Iterator[int]:
    """The number of attention groups that each block keeps, one block after the other."""
    windows = problem.windows
    token_ids = windows.token_ids[: options.samples]
    loop = windows.computing.loop(problem.checkpoint)
    dense, pruned = loop.states(token_ids), loop.states(token_ids)
    for states in (dense, pruned):
        loop.embed_into(states, token_ids)
    blocks = track(loop.blocks(), "learn the split of blocks", len(problem.choices))
    for block, choices, loss in zip(blocks, problem.choices, losses, strict=True):
        block.advance(dense)
        scores = problem.scores.blocks[block.index]
        masks = [
            SoftMask.of(scores.attention_groups, choices.attention_groups, loss, choices.shape),
            SoftMask.of(scores.ffn_channels, choices.ffn_units, loss, choices.shape),
        ]
        if choices.most_removed:
            _learn(block, masks, (pruned, dense), loss / choices.shape.block_weights, options)
        count = choices.attention.nearest(round(masks[0].kept))
        yield count
        _advance_pruned(block, masks, (count, _channels(choices, count, loss)), pruned)


def _learn(
    block: Block,
    masks: list[SoftMask],
    states: tuple[HiddenStates, HiddenStates],
    ratio: float,
    options: LearnedOptions,
) -> None:
    """Adam on both masks' logits; each step looks at one chunk of windows."""
    pruned, dense = states
    parameters = [mask.logits for mask in masks if mask.movable]
    optimiser = torch.optim.Adam(parameters, lr=options.learning_rate)
    shape = block.loop.checkpoint.shape
    attention = shape.num_key_value_heads * shape.group_weights / shape.block_weights
    for step in range(options.steps):
        number = step % pruned.shape.chunks
        inputs, target = (each.chunk(number).to(block.loop.device) for each in (pruned, dense))
        with torch.enable_grad():
            share = attention * masks[0].share + (1 - attention) * masks[1].share
            error = _masked_error(block, masks, inputs, target)
            loss = error + options.penalty * ((share - ratio) / ratio).square()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _masked_error(block: Block, masks: list[SoftMask], inputs: Tensor, target: Tensor) -> Tensor:
    like = block.weights[ATTENTION_READER]
    factors = [mask.factors().to(like) for mask in masks]
    weights = {**block.weights, **masked(block.weights, *factors)}
    output = block.loop.forward(block.index, weights, inputs)
    return ((output - target).square().sum() / target.square().sum()).double().cpu()


def _channels(choices: Choices, groups: int, loss: float) -> int:
    gone = (choices.shape.num_key_value_heads - groups) * choices.shape.group_weights
    return choices.units_within(loss - gone)


def _advance_pruned(
    block: Block, masks: list[SoftMask], counts: tuple[int, int], pruned: HiddenStates
) -> None:
    """What the block gives when its lowest groups and channels are gone feeds the next."""
    like = block.weights[ATTENTION_READER]
    hard = [mask.hard(count).to(like) for mask, count in zip(masks, counts, strict=True)]
    block.replace(masked(block.weights, *hard))
    block.advance(pruned)
