"""Widths of the least sum of measured errors: what ``error-aware`` and ``compensated`` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bipline.compression.allocation.block_errors import BlockErrors, grid_of
from bipline.compression.allocation.knapsack import Part, cheapest
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.shares import filled
from bipline.compression.allocation.split import uniform_candidates
from bipline.compression.allocation.widths import Choices, Widths

# Counts of channels that are weighed against each other; steps between them are filled in after.
MOST_COUNTS = 256

Measure = Callable[[Problem], list[BlockErrors]]


def least_errors(problem: Problem, measure: Measure) -> list[Widths]:
    """The widths of the smallest sum of the errors that ``measure`` finds for the choices."""
    if problem.layout == "uniform":
        return [ranked_splits(problem, measure(problem))[0]] * len(problem.choices)
    asked = thinned(problem)
    return widths_of_least(problem, asked, measure(asked))


def thinned(problem: Problem) -> Problem:
    """The same with so few choices of channels that all combinations can be weighed."""
    return replace(problem, choices=tuple(map(_thinned, problem.choices)))


def thinned_errors(choices: Choices, few: Choices, errors: BlockErrors) -> BlockErrors:
    """A block's errors for all choices, for ``few`` of them."""
    places = [choices.ffn_units.index(count) for count in few.ffn_units]
    return BlockErrors(errors.attention, errors.ffn_channels[places])


def widths_of_least(problem: Problem, asked: Problem, errors: list[BlockErrors]) -> list[Widths]:
    """Per-layer widths of the smallest sum of the errors of ``asked``, the thinned problem."""
    parts: list[Part] = []
    for choices, error in zip(asked.choices, errors, strict=True):
        parts += _parts(choices, error)
    chosen = cheapest(parts, problem.target)
    found = [
        Widths(choices.attention_groups[groups], choices.ffn_units[channels])
        for choices, groups, channels in zip(asked.choices, chosen[::2], chosen[1::2], strict=True)
    ]
    if asked.choices == problem.choices:
        return found
    pairs = zip(problem.choices, found, strict=True)
    losses = [each.removed_weights(choices.shape) for choices, each in pairs]
    return filled(problem, losses, [each.attention_groups for each in found])


def _thinned(choices: Choices) -> Choices:
    counts = choices.ffn_units
    if len(counts) <= MOST_COUNTS:
        return choices
    return replace(choices, ffn_units=grid_of(counts, MOST_COUNTS))


def _parts(choices: Choices, error: BlockErrors) -> list[Part]:
    shape = choices.shape
    kinds = (
        (choices.attention_groups, shape.group_weights, error.attention),
        (choices.ffn_units, shape.channel_weights, error.ffn_channels),
    )
    return [
        Part(tuple((allowed[-1] - count) * weight for count in allowed), tuple(costs.tolist()))
        for allowed, weight, costs in kinds
    ]


def ranked_splits(
    problem: Problem, errors: list[BlockErrors], margin: float = math.inf
) -> list[Widths]:
    """Uniform widths that reach the ratio, that of the smallest sum of errors first.

    None whose sum is more than ``margin`` times the smallest.
    """
    choices = problem.choices[0]

    def total(widths: Widths) -> float:
        held = [error_at(choices, error, widths) for error in errors]
        return float(torch.stack(held).sum())

    totals = {widths: total(widths) for widths in uniform_candidates(problem)}
    least = min(totals.values(), default=0.0)
    near = (widths for widths, sum_ in totals.items() if sum_ / margin <= least)
    return sorted(near, key=totals.__getitem__)


def error_at(choices: Choices, error: BlockErrors, widths: Widths) -> Tensor:
    """The sum of both halves' errors of a block with these of its choices."""
    units = choices.attention.counts.index(choices.attention_of(widths))
    return error.attention[units] + error.ffn_channels[choices.ffn_units.index(widths.ffn_units)]
