"""``compensated``: the widths whose errors are smallest once least squares has made up for them.

e_l(g), e_l(c)  relative squared error behind a half when so many groups or channels stay, chosen
                and corrected by structured OBS, for all counts in one elimination
s_l             how far the model's final stream moves for a little noise there, per share of it
per-layer       minimise the sum over blocks of s_l e_l(g_l) + s_l e_l(c_l) under the budget,
                exactly
uniform         of the ``tried`` splits with the smallest sums of e_l(g) + e_l(c): prune and
                compensate with each, keep the one whose final stream is nearest to the dense
                model's on held-out windows, behind its norm

The errors are those of compensation ``obs``: ``error-aware`` measures what is left without any
correction. Scores are not used for the widths.

Source: ours; costs as in OSSCAR (arXiv 2403.12983), the budget as in ZipLM (arXiv 2302.04089).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bipline.compression.allocation.block_errors import BlockErrors
from bipline.compression.allocation.compensated_errors import measure_compensated_errors
from bipline.compression.allocation.least_errors import least_errors, ranked_splits
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.sensitivity import sensitivities
from bipline.compression.allocation.trial import error_of
from bipline.compression.allocation.widths import Widths
from bipline.compression.options import BaseOptions


class CompensatedOptions(BaseOptions):
    """``samples`` windows for the Gram matrices, ``probes`` of them for sensitivities, with
    ``noise`` as a share of the stream; ``ridge`` as in obs; ``tried``: uniform splits that are
    compensated, 1 for none.
    """

    samples: Annotated[int, Field(ge=1)] = 128
    probes: Annotated[int, Field(ge=1)] = 16
    noise: Annotated[float, Field(gt=0, le=1)] = 0.02
    ridge: Annotated[float, Field(gt=0)] = 1e-2
    tried: Annotated[int, Field(ge=1)] = 2


OPTIONS = CompensatedOptions
WINDOWS = True
NOT_UNIFORM = ""


def widths(problem: Problem, options: CompensatedOptions) -> list[Widths]:
    """The widths of the smallest weighted sum of compensated errors, or the best split tried."""

    def measure(asked: Problem) -> list[BlockErrors]:
        errors = measure_compensated_errors(asked, options.samples, options.ridge)
        weights = sensitivities(asked, options.probes, options.noise, options.seed)
        return [
            BlockErrors(error.attention_groups * attention, error.ffn_channels * ffn)
            for error, (attention, ffn) in zip(errors, weights, strict=True)
        ]

    if problem.layout == "per-layer":
        return least_errors(problem, measure)
    errors = measure_compensated_errors(problem, options.samples, options.ridge)
    splits = ranked_splits(problem, errors)[: options.tried]
    if len(splits) > 1:
        splits.sort(key=lambda split: error_of(problem, split, options.ridge))
    return splits[:1] * len(problem.choices)
