"""What every width costs a block when least squares makes up for what goes.

One elimination by structured OBS (:mod:`bipline.compression.compensation.obs`) visits every
count from all groups down to the fewest allowed; the sum of the costs on the way down to a count
is the squared error that is left there, with the rest corrected. So all counts of a matrix cost
one Gram matrix and one elimination, and no forward pass of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.base.progress import track
from bipline.compression.allocation.block_errors import BlockErrors
from bipline.compression.allocation.problem import Problem
from bipline.compression.compensation.collecting import token_weights
from bipline.compression.compensation.moments import MomentSums
from bipline.compression.compensation.obs import elimination_of, removals
from bipline.compression.compensation.tokens import check_tokens
from bipline.compression.criteria.interface import INPUTS, Block, Tokens
from bipline.model.block_loop import Activations
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import widened


def measure_compensated_errors(
    problem: Problem, ridge: float, most: int | None = None
) -> list[BlockErrors]:
    """Errors of all blocks, or of at most so many, for their ``choices``; relative to what a half
    gives.

    Token by token the squared error is divided by the mean square of the stream behind the half,
    as an RMSNorm would, or behind the block where halves are parallel; dense inputs, all windows.
    """
    windows = problem.windows
    token_ids = windows.token_ids
    check_tokens(problem.checkpoint.shape, len(token_ids), token_ids.shape[1], held_out=0.0)
    loop = windows.computing.loop(problem.checkpoint)
    states = loop.states(token_ids)
    loop.embed_into(states, token_ids)
    errors, every = [], every_so_many(len(problem.choices), most)
    for block in track(loop.blocks(), "measure compensated errors", len(problem.choices)):
        if block.index % every:
            block.advance(states)
            continue
        sums = _Moments(block)
        block.advance(states, sums.observe)
        choices = problem.choices[block.index]
        shape = choices.shape
        width, runs = shape.head_dim * shape.queries_per_group, 1
        if choices.queries_per_group:
            width, runs = shape.head_dim, shape.num_key_value_heads
        errors.append(
            BlockErrors(
                sums.attention.errors(ridge, width, choices.attention.counts, runs),
                sums.ffn.errors(ridge, 1, choices.ffn_units),
            )
        )
    return errors


def every_so_many(blocks: int, most: int | None) -> int:
    """Of how many blocks one is measured, from the first on, for at most ``most`` of them."""
    return -(-blocks // (most or blocks))


@dataclass
class _Matrix:
    """One matrix ``[d, n]`` and the moments of its inputs."""

    weight: Tensor
    sums: MomentSums
    tokens: int = 0
    token_weights: float = 0.0

    @classmethod
    def of(cls, weight: Tensor) -> _Matrix:
        """With no tokens seen yet."""
        return cls(weight, MomentSums(weight.shape[1], 0, weight.device))

    def add(self, inputs: Tensor, weights: Tensor) -> None:
        """Add tokens ``[tokens, n]`` and what each of them counts, ``[tokens]``."""
        self.sums.add(inputs, weights)
        self.tokens += len(inputs)
        self.token_weights += float(weights.sum(dtype=torch.float64))

    def errors(self, ridge: float, width: int, allowed: tuple[int, ...], runs: int = 1) -> Tensor:
        """Mean square error per hidden channel for each allowed count of groups, on the CPU.

        Of several ``runs`` of neighbours each keeps so many.
        """
        second = self.sums.moments().second
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        elimination = elimination_of(weight, second, ridge, width)
        groups = self.weight.shape[1] // width // runs
        costs = torch.zeros(groups + 1, dtype=torch.float64)
        for kept in reversed(range(allowed[0], groups)):
            costs[kept] = costs[kept + 1] + sum(c for _, c in removals(elimination, *[1] * runs))
        # E_g is half a squared norm over all hidden channels, and moments are weighted means: their
        # tokens' weights, one over a mean square, have been divided by the weights' sum.
        scale = 2 / len(self.weight) * self.token_weights / self.tokens
        return costs[list(allowed)] * scale


class _Moments:
    """Adds up the moments of one block's two matrices."""

    def __init__(self, block: LoopBlock) -> None:
        device, checkpoint = block.loop.device, block.loop.checkpoint
        held = {name: weight.to(device) for name, weight in block.source_weights().items()}
        self._block = Block.of(checkpoint, block.index, held)
        self._eps = checkpoint.rms_norm_eps
        self.attention = _Matrix.of(self._block.output_matrix("attention"))
        self.ffn = _Matrix.of(self._block.output_matrix("ffn"))

    def observe(self, _chunk: int, seen: Activations) -> None:
        """Add one micro-batch."""
        tokens = Tokens(seen, len(seen["residual"]))
        between = widened(self._block.between(tokens))
        output = between + widened(seen["ffn_output"])
        attention, ffn = (self._block.output_inputs(name, tokens) for name in INPUTS)
        # Of parallel halves nothing reads the stream before both have been added.
        behind = output if self._block.parallel else between
        self.attention.add(attention, token_weights(behind, self._eps))
        self.ffn.add(ffn, token_weights(output, self._eps))
