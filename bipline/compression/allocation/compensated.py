"""``compensated``: the widths whose errors are smallest once least squares has made up for them.

e_l(g), e_l(c)  relative squared error behind a half, or where halves are parallel behind the block,
                when so many groups or channels stay, chosen and corrected by structured OBS, for
                all counts in one elimination; where query heads go, one of each group is taken at
                a time
s_l             how far the model's final stream moves for a little noise there, per share of it
w_l             the loss that comes back where, of a model pruned and compensated alike, block l
                alone is put back as it was, beside the error that it had; their geometric mean is 1
per-layer       minimise the sum over blocks of a s_l e_l(g_l) + s_l e_l(c_l) under the budget,
                exactly, for each of the weights a: the FFN behind it makes up for part of what
                attention leaves; the same with w_l in the place of both, because what noise says of
                a place may not hold for errors there; of the errors alone; and the best uniform
                split
uniform         the splits with the smallest sums of e_l(g) + e_l(c)
trial           prune and compensate with the first ``tried`` of these, keep the one that leaves the
                least loss on windows that nothing was fitted on; blocks that differ only where
                they leave less than alike ones by two standard errors

Errors are measured, and trials fitted, on ``windows`` of the calibration windows, because they only
put widths in order; trials are compared on others.

The errors are those of compensation ``obs``: ``error-aware`` measures what is left without any
correction. Scores are not used for the widths.

Source: ours; costs as in OSSCAR (arXiv 2403.12983), the budget as in ZipLM (arXiv 2302.04089).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from bipline.compression.allocation.attention_units import AttentionOptions
from bipline.compression.allocation.block_errors import BlockErrors
from bipline.compression.allocation.compensated_errors import measure_compensated_errors
from bipline.compression.allocation.least_errors import (
    error_at,
    ranked_splits,
    thinned,
    thinned_errors,
    widths_of_least,
)
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.restored_blocks import error_weights
from bipline.compression.allocation.sensitivity import sensitivities
from bipline.compression.allocation.split import uniform_candidates
from bipline.compression.allocation.trial import (
    Trials,
    fewer_windows,
    of_least_left,
    trial_options,
)
from bipline.compression.allocation.widths import Widths
from bipline.compression.compensation.options import MOST_STEPS
from bipline.compression.options import PositiveNumber, PositiveNumbers


class CompensatedOptions(AttentionOptions):
    """``windows``: those that errors are measured and widths tried on, evenly spread, and no fewer
    than a fit needs; ``probes``: windows for sensitivities, with ``noise`` as a share of the
    stream; ``ridge`` as in obs; ``tried``: widths that are compensated, 1 for none; ``margin``: in
    the uniform layout none whose sum of errors is more than so many times the least; ``blocks``:
    there, at most so many are measured, evenly spread, or all where no number is given;
    ``attention_weights``: per-layer, what attention's errors count beside the FFN's; ``weighed``:
    there, whether widths by weighed errors are tried beside those by errors alone; ``row_steps``:
    there, steps for kept rows of a trial, as in obs.
    """

    windows: Annotated[int, Field(ge=1)] = 32
    probes: Annotated[int, Field(ge=1)] = 16
    noise: Annotated[float, Field(gt=0, le=1)] = 0.02
    ridge: PositiveNumber = 1e-2
    tried: Annotated[int, Field(ge=1)] = 3
    margin: Annotated[PositiveNumber, Field(ge=1)] = 1.25
    blocks: Annotated[int, Field(ge=1)] | None = None
    attention_weights: PositiveNumbers = (1.0, 0.5)
    weighed: bool = True
    row_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 4


OPTIONS = CompensatedOptions
WINDOWS = True
NOT_UNIFORM = ""


def widths(problem: Problem, options: CompensatedOptions) -> list[Widths]:
    """Of the widths with the smallest sums of compensated errors, those that leave the least."""
    few, per_layer = fewer_windows(problem, options.windows), problem.layout == "per-layer"
    trial = trial_options(options.ridge, options.row_steps if per_layer else 0)
    trials = Trials(problem, options.windows, trial)
    found = _per_layer(few, options, trials) if per_layer else _uniform(few, options)
    return of_least_left(trials, found)


def _uniform(problem: Problem, options: CompensatedOptions) -> list[list[Widths]]:
    splits = uniform_candidates(problem)
    if len(splits) > 1:
        splits = _best_splits(problem, splits, options)
    return [[split] * len(problem.choices) for split in splits[: options.tried]]


def _best_splits(
    problem: Problem, splits: Sequence[Widths], options: CompensatedOptions
) -> list[Widths]:
    """Those with the smallest sums of errors first; no width that none of them has is measured."""
    units = sorted({problem.choices[0].attention_of(each) for each in splits})
    channels = sorted({each.ffn_units for each in splits})
    limited = (each.limited(tuple(units), tuple(channels)) for each in problem.choices)
    asked = replace(problem, choices=tuple(limited))
    errors = measure_compensated_errors(asked, options.ridge, options.blocks)
    return ranked_splits(asked, errors, options.margin)


def _per_layer(problem: Problem, options: CompensatedOptions, trials: Trials) -> list[list[Widths]]:
    """The best widths by weighed errors, by errors alone, and the best alike.

    Sums of errors are what a model loses only as far as blocks do not depend on each other: where
    the measured end does not bear them out, blocks stay alike.
    """
    asked = thinned(problem)
    errors = measure_compensated_errors(problem, options.ridge)
    few = [
        thinned_errors(*each) for each in zip(problem.choices, asked.choices, errors, strict=True)
    ]

    def best(weights: Sequence[tuple[float, float]]) -> list[Widths]:
        return widths_of_least(problem, asked, _weighed(few, weights))

    found = [best(each) for each in _noise_weights(problem, options)] if options.weighed else []
    if options.tried == 1 and found:
        return found
    alone = best([(1.0, 1.0)] * len(few))
    if options.tried == 1:
        return [alone]
    alike = len(set(problem.choices)) == 1
    base = [ranked_splits(problem, errors)[0]] * len(few) if alike else alone
    if options.weighed:
        found.append(best(_restored_weights(problem, errors, base, trials)))
    return [*found, alone, base]


def _noise_weights(
    problem: Problem, options: CompensatedOptions
) -> list[list[tuple[float, float]]]:
    """Of every block what noise behind its halves costs, for each weight of attention."""
    slopes = sensitivities(problem, options.probes, options.noise, options.seed)
    weights = options.attention_weights[: options.tried]
    return [[(attention * weight, ffn) for attention, ffn in slopes] for weight in weights]


def _restored_weights(
    problem: Problem, errors: Sequence[BlockErrors], base: Sequence[Widths], trials: Trials
) -> list[tuple[float, float]]:
    """Of every block what its error costs once all have the widths ``base``."""
    there = zip(problem.choices, errors, base, strict=True)
    had = torch.stack([error_at(*each) for each in there])
    return [(weight, weight) for weight in error_weights(trials.gains(base), had).tolist()]


def _weighed(
    errors: Sequence[BlockErrors], weights: Sequence[tuple[float, float]]
) -> list[BlockErrors]:
    """Errors of attention and FFN times a weight each."""
    return [
        BlockErrors(error.attention * attention, error.ffn_channels * ffn)
        for error, (attention, ffn) in zip(errors, weights, strict=True)
    ]
