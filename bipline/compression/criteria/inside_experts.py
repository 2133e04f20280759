"""Scores of channels inside experts, each compared within its own expert.

What enters an expert's down_proj counts times the router's weight, over the tokens that the expert
sees. Of one that saw none nothing is known but its weights: its inputs are taken to be of mean
square 1, all alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bipline.compression.criteria.experts import Experts
from bipline.compression.criteria.interface import Block, BlockScores, Sums, root_mean_square
from bipline.model.experts import SHARED_DOWN


def expert_columns(block: Block, of_columns: Callable[[Tensor], Tensor]) -> Tensor:
    """What there is of the columns of every expert's down_proj, ``[experts, f]``."""
    experts = Experts(block)
    return torch.stack([of_columns(experts.down(each)) for each in range(len(experts))])


def with_channels(
    scores: BlockScores,
    block: Block,
    of_columns: Callable[[Tensor], Tensor],
    sums: Sums | None = None,
) -> BlockScores:
    """Scores with those of channels: the root mean square of what enters, times ``of_columns``.

    Without sums all inputs count alike. What all tokens share has none where the sums, being
    older, have none of it.
    """
    inside, matrix = expert_columns(block, of_columns), block.weights.get(SHARED_DOWN)
    shared = None if matrix is None else of_columns(matrix)
    if sums is None:
        return scores.inside(inside, shared)
    squares = sums.get("shared_activation_squares")
    if shared is not None:
        shared = None if squares is None else shared * root_mean_square(squares, sums["tokens"])
    return scores.inside(inside * expert_rms(sums), shared)


def expert_rms(sums: Sums) -> Tensor:
    """Of what enters every expert's down_proj over the tokens it sees, ``[experts, f]``.

    1 for an expert that saw none.
    """
    seen = sums["expert_tokens"][:, None]
    rms = root_mean_square(sums["ffn_activation_squares"], seen.clamp(min=1))
    return torch.where(seen > 0, rms, torch.ones_like(rms))
