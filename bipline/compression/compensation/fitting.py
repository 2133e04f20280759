"""Fitting one matrix: the compensation that is set, or the next simpler one, under the guard.

It is kept only where the error on held-out windows falls below that of the matrix as it is; else
the next simpler one is fitted. Within one compensation the ridge and the share of the drift are
chosen by the same errors, one after the other: all shares with the ridge next to the middle, then
the other ridges with the best share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from bipline.compression.compensation.candidates import (
    Candidate,
    Sublayer,
    corrected,
    uncorrected,
)
from bipline.compression.compensation.closed_forms import LeastSquares, bias_correction
from bipline.compression.compensation.moments import Moments
from bipline.compression.compensation.obs import elimination_of, remove_greedily
from bipline.compression.compensation.options import (
    PUBLISHED,
    CompensationOptions,
    published_options,
)
from bipline.compression.compensation.slimgpt import kept_in_batches
from bipline.compression.compensation.trials import Errors, Trials
from bipline.values.compensation import LADDER, Compensation, SublayerRecord


def fitted(
    sublayer: Sublayer,
    moments: Moments | None,
    compensation: Compensation,
    options: CompensationOptions,
    errors: Errors,
) -> tuple[Candidate, SublayerRecord]:
    """The version that is kept, and the record of those that were measured.

    ``errors`` measures a few versions together. ``moments`` are centred where the sublayer has an
    intercept. Where nothing is pruned and no drift is to be corrected, there is only the matrix
    itself.
    """
    tried = Trials(errors, uncorrected(sublayer), guarded=compensation not in PUBLISHED)
    if moments is not None and not (sublayer.whole and moments.drift is None):
        for each in _ladder(compensation):
            _FITS[each](sublayer, moments, options, tried)
            if tried.chosen.compensation != "none":
                break
    return tried.chosen, recorded(tried, sublayer)


def recorded(tried: Trials, sublayer: Sublayer) -> SublayerRecord:
    """The record of the versions that were measured."""
    chosen = tried.chosen
    return SublayerRecord(
        form=chosen.compensation,
        ridge=chosen.ridge,
        beta=chosen.beta,
        replaced=len(set(chosen.kept) - set(sublayer.kept)),
        errors=tried.by_compensation,
    )


def _ladder(compensation: Compensation) -> tuple[Compensation, ...]:
    """What is fitted, one after the other, until one helps."""
    if compensation not in LADDER:
        return (compensation,)
    return LADDER[1 : LADDER.index(compensation) + 1][::-1]


def chosen_groups(
    sublayer: Sublayer, moments: Moments, ridge: float, compensation: Compensation = "obs"
) -> tuple[int, ...]:
    """As many groups as the plan keeps, of each run, by greedy structured OBS; ascending."""
    if sublayer.whole:
        return sublayer.kept
    weight, second = sublayer.weight.to(moments.products), moments.second
    if compensation == "slimgpt":
        return kept_in_batches(weight, second, sublayer.width, *sublayer.going)
    elimination = elimination_of(weight, second, ridge, sublayer.width, sublayer.importance)
    removed = set(remove_greedily(elimination, *sublayer.going))
    return tuple(g for g in range(sublayer.groups) if g not in removed)


def _fit_bias(
    sublayer: Sublayer, moments: Moments, options: CompensationOptions, tried: Trials
) -> None:
    if not sublayer.intercept:
        return
    columns, others = sublayer.columns(sublayer.kept), sublayer.others(sublayer.kept)
    weight = sublayer.weight.to(moments.products)
    own, drift = bias_correction(weight, moments, columns, others)
    tried.measure(
        corrected(sublayer, "bias", sublayer.kept, own, drift, beta=beta)
        for beta in (options.betas if drift else (None,))
    )


def _fit_least_squares(
    sublayer: Sublayer, moments: Moments, options: CompensationOptions, tried: Trials
) -> None:
    _regress("least-squares", sublayer.kept, sublayer, moments, options, tried)


def _fit_obs(
    sublayer: Sublayer, moments: Moments, options: CompensationOptions, tried: Trials
) -> None:
    if sublayer.chosen is not None and sublayer.chosen != sublayer.kept:
        _regress("obs", sublayer.chosen, sublayer, moments, options, tried)


def _fit_published(
    name: Compensation,
    sublayer: Sublayer,
    moments: Moments,
    options: CompensationOptions,
    tried: Trials,
) -> None:
    if not sublayer.whole:
        kept = sublayer.chosen or sublayer.kept
        _regress(name, kept, sublayer, moments, published_options(name, options), tried)


Fit = Callable[[Sublayer, Moments, CompensationOptions, Trials], None]
_FITS: dict[Compensation, Fit] = {
    "bias": _fit_bias,
    "least-squares": _fit_least_squares,
    "obs": _fit_obs,
    "osscar": partial(_fit_published, "osscar"),
    "slimgpt": partial(_fit_published, "slimgpt"),
}


def _regress(
    compensation: Compensation,
    kept: tuple[int, ...],
    sublayer: Sublayer,
    moments: Moments,
    options: CompensationOptions,
    tried: Trials,
) -> None:
    columns, others = sublayer.columns(kept), sublayer.others(kept)
    problem = LeastSquares(sublayer.weight.to(moments.products), moments, columns, others)
    for factor in sorted(options.ridge_factors, key=lambda each: abs(math.log(each))):
        ridge = options.ridge * factor
        own, drift = problem.solve(ridge)
        betas = tried.betas(compensation, options) if drift else (None,)
        tried.measure(
            corrected(sublayer, compensation, kept, own, drift, ridge, beta) for beta in betas
        )
        del own, drift  # before the next ones are solved for
