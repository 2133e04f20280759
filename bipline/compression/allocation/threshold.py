"""``threshold``: a learned keep share for every sublayer (MLPruning, arXiv 2105.14636, "-style").

keep share    sigmoid(t), one threshold t for each attention and each FFN sublayer
mask          the highest ceil(share * n) of the sublayer's scores
loss          language-model loss + lambda * (remaining share - target)^2, lambda growing
gradient      straight through the mask: d loss / dt = sum over kept groups of d loss / d mask

The thresholds of all blocks are learned together, on the whole model. Afterwards the shares are
rounded to counts and corrected to the budget. With the uniform layout the mean share of attention
decides the split.

Source: MLPruning and its code, for the sigmoid, the straight-through gradient and the penalty:
established. Decoders in the place of a fine-tuned encoder, scores that a criterion gave instead of
learned ones, a start at the target and a budget of ``tokens`` are a reconstruction, told in full in
``learn_thresholds.py``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bipline.compression.allocation.learn_thresholds import (
    BATCH_WINDOWS,
    DEFAULT_TOKENS,
    FINAL_LAMBDA,
    LEARNING_RATE,
    learn_thresholds,
)
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.shares import filled, scaled_to_budget
from bipline.compression.allocation.split import uniform_of_share
from bipline.compression.allocation.widths import Choices, Widths
from bipline.compression.masks import masked_gradient_operations
from bipline.compression.options import BaseOptions, PositiveNumber
from bipline.model.floor import Counted
from bipline.model.shapes import ModelShape

# A sublayer whose learned share is 1 still takes part where the budget leaves no other way.
LEAST_LOSS = 1e-6


class ThresholdOptions(BaseOptions):
    """The budget in tokens that run forward and backward, the rate, and the final penalty."""

    tokens: Annotated[int, Field(ge=1)] = DEFAULT_TOKENS
    learning_rate: PositiveNumber = LEARNING_RATE
    final_lambda: PositiveNumber = FINAL_LAMBDA


OPTIONS = ThresholdOptions
WINDOWS = True
BACKWARD_WINDOWS = BATCH_WINDOWS
NOT_UNIFORM = ""


def widths(problem: Problem, options: ThresholdOptions) -> list[Widths]:
    """Widths nearest to the learned shares that meet the budget."""
    windows = problem.windows
    shares = learn_thresholds(
        windows.computing.loop(problem.checkpoint),
        windows.token_ids,
        problem.scores.blocks,
        1 - problem.ratio,
        options.tokens,
        options.learning_rate,
        options.final_lambda,
        options.seed,
    )
    groups = [
        choices.attention.nearest(round(attention * choices.shape.num_key_value_heads))
        for choices, (attention, _) in zip(problem.choices, shares, strict=True)
    ]
    if problem.layout == "uniform":
        channels = problem.choices[0].ffn_units[-1]
        return uniform_of_share(problem, [Widths(count, channels) for count in groups])
    losses = [_loss(c, *share) for c, share in zip(problem.choices, shares, strict=True)]
    return filled(problem, scaled_to_budget(losses, problem), groups)


def operations(shape: ModelShape, options: ThresholdOptions, _windows: int, seqlen: int) -> Counted:
    """Floating-point operations of the budget of tokens, each of which goes back too."""
    return masked_gradient_operations(shape, options.tokens, seqlen)


def _loss(choices: Choices, attention: float, ffn: float) -> float:
    """Weights that a block should lose by its two keep shares."""
    shape = choices.shape
    of_attention = (1 - attention) * shape.num_key_value_heads * shape.group_weights
    of_ffn = (1 - ffn) * shape.intermediate_size * shape.channel_weights
    return max(of_attention + of_ffn, LEAST_LOSS * shape.block_weights)
