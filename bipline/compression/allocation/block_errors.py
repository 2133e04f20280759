"""How far a block's output moves when its lowest groups, or its lowest channels, go.

Measured on dense inputs, one block after the other. Channels are taken away in the order of
their scores, so all counts together cost one pass through down_proj; each number of groups costs
one pass through the FFN, unless that is beside the attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from bipline.base.progress import track
from bipline.compression.allocation.problem import Problem
from bipline.compression.criteria.interface import Block, BlockScores, Tokens
from bipline.compression.criteria.llm_bip_exact import Behind, FeedForward
from bipline.model.block_loop import Activations
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import widened


@dataclass(frozen=True)
class BlockErrors:
    """Relative squared errors of a block's output for every count it may keep, as ``choices``."""

    attention: Tensor
    ffn_channels: Tensor


def measure_errors(problem: Problem, samples: int, grid: int) -> list[BlockErrors]:
    """The errors of every block, on the first ``samples`` calibration windows."""
    windows = problem.windows
    token_ids = windows.token_ids[:samples]
    loop = windows.computing.loop(problem.checkpoint)
    states = loop.states(token_ids)
    loop.embed_into(states, token_ids)
    layers, errors = len(problem.choices), []
    for block in track(loop.blocks(), "measure block errors", layers):
        pruned = _PrunedBlock(problem, block, grid)
        block.advance(states, pruned.observe)
        errors.append(pruned.errors())
    return errors


class _PrunedBlock:
    """One block with its groups and channels in the order in which they would go."""

    def __init__(self, problem: Problem, block: LoopBlock, grid: int) -> None:
        scores: BlockScores = problem.scores.blocks[block.index]
        self._block = Block.of(problem.checkpoint, block.index, block.weights)
        self._choices = problem.choices[block.index]
        self._groups = _ascending(scores.attention_groups)
        self._channels = _ascending(scores.ffn_channels)
        self._counts = grid_of(self._choices.ffn_units, grid)
        self._feed_forward = FeedForward(self._block)
        self._attention_errors = torch.zeros(len(self._choices.attention_groups)).double()
        self._ffn_errors = torch.zeros(len(self._counts)).double()
        self._output = 0.0

    def observe(self, _chunk: int, seen: Activations) -> None:
        """Add one micro-batch's squared errors and squared outputs."""
        tokens = Tokens(seen, len(seen["residual"]))
        output = widened(self._block.between(tokens)) + widened(seen["ffn_output"])
        self._output += float(output.square().sum(dtype=torch.float64))
        self._ffn_errors += self._of_channels(tokens)
        self._attention_errors += self._of_groups(tokens)

    def errors(self) -> BlockErrors:
        """Relative errors; between the measured counts of channels they are interpolated."""
        allowed, counts = self._choices.ffn_units, self._counts
        places = torch.tensor(allowed).double()
        known = torch.tensor(counts).double()
        right = torch.searchsorted(known, places).clamp(1, max(1, len(counts) - 1))
        if len(counts) == 1:
            return BlockErrors(self._attention_errors / self._output, self._ffn_errors * 0)
        left = right - 1
        share = (places - known[left]) / (known[right] - known[left])
        ffn = self._ffn_errors[left] + share * (self._ffn_errors[right] - self._ffn_errors[left])
        return BlockErrors(self._attention_errors / self._output, ffn / self._output)

    def _of_channels(self, tokens: Tokens) -> Tensor:
        """Squared errors for each count of the grid, from the most channels to the fewest."""
        activation, behind = widened(tokens["ffn_activation"]), Behind(self._block, "ffn", tokens)
        down = widened(self._block.weights["mlp.down_proj.weight"])
        full, errors, gone = len(self._channels), [], 0
        change = activation.new_zeros(len(activation), len(down))
        for count in reversed(self._counts):
            going = self._channels[gone : full - count].to(activation.device)
            if len(going):
                change += linear(activation[:, going], down[:, going])
            gone = full - count
            lost = behind.change(change)
            errors.append(lost.square().sum(dtype=torch.float64).cpu())
        return torch.stack(errors[::-1])

    def _of_groups(self, tokens: Tokens) -> Tensor:
        """Squared errors for each count of groups, from the most to the fewest."""
        attention, residual = widened(tokens["attention_output"]), widened(tokens["residual"])
        behind = Behind(self._block, "attention", tokens)
        columns = widened(self._block.weights["self_attn.o_proj.weight"])
        shape = (len(self._groups), -1)
        parts, reads = attention.unflatten(1, shape), columns.unflatten(1, shape)
        # A parallel FFN never reads the change.
        before = None if self._block.parallel else self._feed_forward(residual)
        taken, errors, gone = torch.zeros_like(residual), [], 0
        for count in reversed(self._choices.attention_groups):
            for group in self._groups[gone : len(self._groups) - count].tolist():
                taken += linear(parts[:, group], reads[:, group])
            gone = len(self._groups) - count
            moved = behind.change(taken)
            if gone and before is not None:
                moved = moved + self._feed_forward(residual + moved) - before
            errors.append(moved.square().sum(dtype=torch.float64).cpu())
        return torch.stack(errors[::-1])


def _ascending(scores: Tensor) -> Tensor:
    """Indices in the order in which they go; of equal scores the last goes first."""
    return torch.sort(scores.double().flip(0), stable=True).indices.neg() + len(scores) - 1


def grid_of(allowed: tuple[int, ...], points: int) -> tuple[int, ...]:
    """At most ``points`` of the counts, the ends among them."""
    if len(allowed) <= points:
        return allowed
    places = torch.linspace(0, len(allowed) - 1, points).round().long().unique()
    return tuple(allowed[place] for place in places.tolist())
