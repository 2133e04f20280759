"""``compensated``: the widths whose errors are smallest once least squares has made up for them.

e_l(g), e_l(c)  relative squared error behind a half when so many groups or channels stay, chosen
                and corrected by structured OBS, for all counts in one elimination
s_l             how far the model's final stream moves for a little noise there, per share of it
per-layer       minimise the sum over blocks of s_l e_l(g_l) + s_l e_l(c_l) under the budget,
                exactly
uniform         minimise the sum over blocks of (e_l(g) + e_l(c))^1.5 over the splits that reach
                the ratio: a block that loses very much costs more than its error says, because
                what follows is fitted on it

The errors are those of compensation ``obs``: ``error-aware`` measures what is left without any
correction. Scores are not used for the widths.

Source: ours; costs as in OSSCAR (arXiv 2403.12983), the budget as in ZipLM (arXiv 2302.04089).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bipline.compression.allocation.block_errors import BlockErrors
from bipline.compression.allocation.compensated_errors import measure_compensated_errors
from bipline.compression.allocation.least_errors import least_errors
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.sensitivity import sensitivities
from bipline.compression.allocation.widths import Widths
from bipline.compression.options import BaseOptions


class CompensatedOptions(BaseOptions):
    """``samples`` windows for the Gram matrices, ``probes`` for sensitivities; ridge as in obs."""

    samples: Annotated[int, Field(ge=1)] = 128
    probes: Annotated[int, Field(ge=1)] = 16
    noise: Annotated[float, Field(gt=0, le=1)] = 0.02
    ridge: Annotated[float, Field(gt=0)] = 1e-2


OPTIONS = CompensatedOptions
# Chosen among 1 and 1.5 by five comparisons of splits after compensation (docs/auto.md).
UNIFORM_POWER = 1.5
WINDOWS = True
NOT_UNIFORM = ""


def widths(problem: Problem, options: CompensatedOptions) -> list[Widths]:
    """The widths of the smallest weighted sum of compensated errors."""

    def measure(asked: Problem) -> list[BlockErrors]:
        errors = measure_compensated_errors(asked, options.samples, options.ridge)
        if problem.layout == "uniform":
            return errors
        weights = sensitivities(asked, options.probes, options.noise, options.seed)
        return [
            BlockErrors(error.attention_groups * attention, error.ffn_channels * ffn)
            for error, (attention, ffn) in zip(errors, weights, strict=True)
        ]

    return least_errors(problem, measure, UNIFORM_POWER)
