"""``error-aware``: measure what each width costs each block, then solve for the budget (ours).

e_l(g)  error of the block's output when the lowest groups go and g stay, the FFN run again
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

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bipline.compression.allocation.block_errors import BlockErrors, grid_of, measure_errors
from bipline.compression.allocation.knapsack import Part, cheapest
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.shares import filled
from bipline.compression.allocation.split import uniform_candidates
from bipline.compression.allocation.widths import Choices, Widths
from bipline.compression.options import BaseOptions

# Counts of channels that are weighed against each other; steps between them are filled in after.
MOST_COUNTS = 256


class ErrorAwareOptions(BaseOptions):
    """How finely, and on how many calibration windows, errors are measured."""

    grid: Annotated[int, Field(ge=2, le=1024)] = 33
    samples: Annotated[int, Field(ge=1)] = 32


OPTIONS = ErrorAwareOptions
WINDOWS = True
NOT_UNIFORM = ""


def widths(problem: Problem, options: ErrorAwareOptions) -> list[Widths]:
    """The widths of the smallest sum of measured errors."""
    if problem.layout == "uniform":
        return _uniform(problem, measure_errors(problem, options.samples, options.grid))
    thinned = replace(problem, choices=tuple(map(_thinned, problem.choices)))
    errors = measure_errors(thinned, options.samples, options.grid)
    parts: list[Part] = []
    for choices, error in zip(thinned.choices, errors, strict=True):
        parts += _parts(choices, error)
    chosen = cheapest(parts, problem.target)
    found = [
        Widths(choices.attention_groups[groups], choices.ffn_channels[channels])
        for choices, groups, channels in zip(
            thinned.choices, chosen[::2], chosen[1::2], strict=True
        )
    ]
    if thinned.choices == problem.choices:
        return found
    pairs = zip(problem.choices, found, strict=True)
    losses = [each.removed_weights(choices.shape) for choices, each in pairs]
    return filled(problem, losses, [each.attention_groups for each in found])


def _thinned(choices: Choices) -> Choices:
    """The same choices with so few counts of channels that all combinations can be weighed."""
    counts = choices.ffn_channels
    if len(counts) <= MOST_COUNTS:
        return choices
    return replace(choices, ffn_channels=grid_of(counts, MOST_COUNTS))


def _parts(choices: Choices, error: BlockErrors) -> list[Part]:
    shape = choices.shape
    kinds = (
        (choices.attention_groups, shape.group_weights, error.attention_groups),
        (choices.ffn_channels, shape.channel_weights, error.ffn_channels),
    )
    return [
        Part(tuple((allowed[-1] - count) * weight for count in allowed), tuple(costs.tolist()))
        for allowed, weight, costs in kinds
    ]


def _uniform(problem: Problem, errors: list[BlockErrors]) -> list[Widths]:
    choices = problem.choices[0]

    def total(widths: Widths) -> float:
        groups = choices.attention_groups.index(widths.attention_groups)
        channels = choices.ffn_channels.index(widths.ffn_channels)
        held: list[Tensor] = [e.attention_groups[groups] + e.ffn_channels[channels] for e in errors]
        return float(torch.stack(held).sum())

    return [min(uniform_candidates(problem), key=total)] * len(problem.choices)
