"""``error-aware``: measure what each width costs each block, then solve for the budget (ours).

e_l(g)  error of the block's output when the lowest groups go and g stay, the FFN behind run again
e_l(c)  error of the block's output when the lowest channels go and c stay
error   sum over tokens of ||y' - y||^2 / sum over tokens of ||y||^2, block by block, dense inputs
widths  minimise the sum over blocks of e_l(g_l) + e_l(c_l) under the budget, exactly (dynamic
        programming over all counts that may be kept)

So it chooses the split between attention and FFN as well as the share of every block; with the
uniform layout it chooses the split, the same in every block. Errors of attention and FFN are
measured apart and added; errors of different blocks are added as if they met nowhere. Channels
are measured at ``grid`` counts and interpolated between. ``samples`` windows are run.

Source: ours. ZipLM (arXiv 2302.04089) and OSSCAR (arXiv 2403.12983) likewise choose structures by
measured errors under a budget.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from bipline.compression.allocation.block_errors import measure_errors
from bipline.compression.allocation.least_errors import least_errors
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths
from bipline.compression.options import BaseOptions
from bipline.model.floor import Counted, forward_operations
from bipline.model.shapes import ModelShape


class ErrorAwareOptions(BaseOptions):
    """How finely, and on how many calibration windows, errors are measured."""

    grid: Annotated[int, Field(ge=2, le=1024)] = 33
    samples: Annotated[int, Field(ge=1)] = 32


OPTIONS = ErrorAwareOptions
WINDOWS = True
NOT_UNIFORM = ""


def operations(shape: ModelShape, options: ErrorAwareOptions, windows: int, seqlen: int) -> Counted:
    """Floating-point operations: a pass, and in float32 at least what goes out of every block.

    One pass through the FFN as it is and one for every count of groups that is not all of them;
    every group's and every channel's share of what o_proj and down_proj give once.
    """
    drawn = min(windows, options.samples), seqlen
    each = 0.0
    for block in map(shape.block, range(shape.num_hidden_layers)):
        ffn = block.channel_weights * block.intermediate_size
        attention = block.num_attention_heads * block.head_dim
        each += block.num_key_value_heads * ffn
        each += block.hidden_size * (attention + block.intermediate_size)
    wide = 2.0 * math.prod(drawn) * each
    return Counted(forward_operations(shape, *drawn) + wide, wide)


def widths(problem: Problem, options: ErrorAwareOptions) -> list[Widths]:
    """The widths of the smallest sum of measured errors."""
    return least_errors(problem, lambda asked: measure_errors(asked, options.samples, options.grid))
