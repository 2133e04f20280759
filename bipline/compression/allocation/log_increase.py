"""``log-increase``: later blocks lose more, on a logarithm (SlimGPT, arXiv 2412.18110).

s_l = s_min + (s_max - s_min) ln(1 + l) / ln(L),   l = 0 .. L - 1,   s_max = ``spread`` * s_min
scaled so that the blocks' losses add up to the ratio

Source: the schedule as ports of SlimGPT's code have it; its run for 20 % uses .0625 and .25, so
the published spread is 4. Established as quoted there. Inside a block, heads and channels lose
the same share, as with ``uniform``.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.shares import filled, scaled_to_budget
from bipline.compression.allocation.widths import Widths
from bipline.compression.options import BaseOptions


class LogIncreaseOptions(BaseOptions):
    """How many times the share of the first block the last one loses."""

    spread: Annotated[float, Field(ge=1, le=1000)] = 4.0


OPTIONS = LogIncreaseOptions
WINDOWS = False
NOT_UNIFORM = "it only says how much more one block loses than another"


def widths(problem: Problem, options: LogIncreaseOptions) -> list[Widths]:
    """Widths that follow the schedule."""
    blocks = problem.choices
    shares = [log_share(index, len(blocks), options.spread) for index in range(len(blocks))]
    weights = [s * each.shape.block_weights for s, each in zip(shares, blocks, strict=True)]
    return filled(problem, scaled_to_budget(weights, problem))


def log_share(index: int, count: int, spread: float) -> float:
    """s_l / s_min of block ``index`` of ``count``."""
    return 1.0 if count == 1 else 1.0 + (spread - 1.0) * math.log(1 + index) / math.log(count)
