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

from typing import Annotated

from pydantic import Field

from bipline.compression.allocation.block_errors import measure_errors
from bipline.compression.allocation.least_errors import least_errors
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths
from bipline.compression.options import BaseOptions


class ErrorAwareOptions(BaseOptions):
    """How finely, and on how many calibration windows, errors are measured."""

    grid: Annotated[int, Field(ge=2, le=1024)] = 33
    samples: Annotated[int, Field(ge=1)] = 32


OPTIONS = ErrorAwareOptions
WINDOWS = True
NOT_UNIFORM = ""


def widths(problem: Problem, options: ErrorAwareOptions) -> list[Widths]:
    """The widths of the smallest sum of measured errors."""
    return least_errors(problem, lambda asked: measure_errors(asked, options.samples, options.grid))
