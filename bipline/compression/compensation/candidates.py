"""Candidates: the versions of one sublayer's matrix that are compared on held-out windows.

A sublayer's matrix is o_proj or down_proj. Every candidate is rounded to the dtype it will be
written in before it is measured, so what is compared is what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.artifacts.compensation import FORMS, Form
from bipline.compression.compensation.closed_forms import (
    ROWS_TOGETHER,
    Correction,
    LeastSquares,
    bias_correction,
)
from bipline.compression.compensation.moments import Moments
from bipline.compression.compensation.obs import elimination_of, remove_greedily
from bipline.compression.compensation.options import CompensationOptions


@dataclass(frozen=True)
class Sublayer:
    """One matrix ``[d, n]`` as the source holds it, and what may be done with it.

    ``kept`` are the groups the plan keeps, each ``width`` neighbouring columns. ``importance`` is
    the diagonal of D, ``[d]``; None for the identity. ``intercept``: whether the result may have
    a bias that is not the source's own. ``dtype`` is what the result is written in.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    width: int
    kept: tuple[int, ...]
    importance: Tensor | None
    intercept: bool

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return self.weight.shape[1] // self.width

    @property
    def whole(self) -> bool:
        """Whether every group stays."""
        return len(self.kept) == self.groups

    def columns(self, groups: tuple[int, ...]) -> Tensor:
        """Column indices of groups, ``[groups * width]``."""
        first = torch.tensor(groups, dtype=torch.int64, device=self.weight.device) * self.width
        return (first[:, None] + torch.arange(self.width, device=first.device)).reshape(-1)

    def others(self, groups: tuple[int, ...]) -> Tensor:
        """Column indices of all other groups."""
        held = set(groups)
        return self.columns(tuple(g for g in range(self.groups) if g not in held))


@dataclass(frozen=True)
class Candidate:
    """A version: kept groups, their columns, the weights ``[d, s]`` and the bias or None.

    Weights and bias are in the dtype they are written in.
    """

    form: Form
    kept: tuple[int, ...]
    columns: Tensor
    weight: Tensor
    bias: Tensor | None
    ridge: float | None = None
    beta: float | None = None


def uncorrected(sublayer: Sublayer) -> Candidate:
    """The plan's groups with their weights as they are."""
    columns, bias = sublayer.columns(sublayer.kept), sublayer.bias
    weight = sublayer.weight[:, columns].to(sublayer.dtype)
    bias = None if bias is None else bias.to(sublayer.dtype)
    return Candidate("none", sublayer.kept, columns, weight, bias)


def candidates(
    sublayer: Sublayer, moments: Moments, form: Form, options: CompensationOptions
) -> Iterator[Candidate]:
    """Versions of all forms up to ``form``, the simplest first, made when they are asked for.

    The moments are used up. Where nothing is pruned and no drift is to be corrected, there is only
    the matrix itself.
    """
    yield uncorrected(sublayer)
    if sublayer.whole and moments.drift is None:
        return
    if sublayer.intercept:
        moments = moments.centre()
    wanted = FORMS[: FORMS.index(form) + 1]
    if "bias" in wanted and sublayer.intercept:
        yield from _with_bias(sublayer, moments, options)
    if "least-squares" in wanted:
        yield from _regressed("least-squares", sublayer.kept, sublayer, moments, options)
    if "obs" in wanted and not sublayer.whole:
        kept = chosen_groups(sublayer, moments, options.ridge)
        if kept != sublayer.kept:
            yield from _regressed("obs", kept, sublayer, moments, options)


def chosen_groups(sublayer: Sublayer, moments: Moments, ridge: float) -> tuple[int, ...]:
    """As many groups as the plan keeps, by greedy structured OBS; ascending."""
    weight, second = sublayer.weight.to(moments.products), moments.second
    elimination = elimination_of(weight, second, ridge, sublayer.width, sublayer.importance)
    removed = set(remove_greedily(elimination, sublayer.groups - len(sublayer.kept)))
    return tuple(g for g in range(sublayer.groups) if g not in removed)


def _with_bias(
    sublayer: Sublayer, moments: Moments, options: CompensationOptions
) -> Iterator[Candidate]:
    columns, others = sublayer.columns(sublayer.kept), sublayer.others(sublayer.kept)
    weight = sublayer.weight.to(moments.products)
    own, drift = bias_correction(weight, moments, columns, others)
    for beta in _betas(options, drift):
        yield _version(sublayer, "bias", sublayer.kept, own, drift, beta=beta)


def _regressed(
    form: Form,
    kept: tuple[int, ...],
    sublayer: Sublayer,
    moments: Moments,
    options: CompensationOptions,
) -> Iterator[Candidate]:
    columns, others = sublayer.columns(kept), sublayer.others(kept)
    problem = LeastSquares(sublayer.weight.to(moments.products), moments, columns, others)
    for ridge in (options.ridge * each for each in options.ridge_factors):
        own, drift = problem.solve(ridge)
        for beta in _betas(options, drift):
            yield _version(sublayer, form, kept, own, drift, ridge, beta)
        del own, drift  # before the next ones are solved for


def _betas(options: CompensationOptions, drift: Correction | None) -> tuple[float | None, ...]:
    return (None,) if drift is None else options.betas


def _version(
    sublayer: Sublayer,
    form: Form,
    kept: tuple[int, ...],
    own: Correction,
    drift: Correction | None,
    ridge: float | None = None,
    beta: float | None = None,
) -> Candidate:
    columns, dtype, bias = sublayer.columns(kept), sublayer.dtype, sublayer.bias
    weight = sublayer.weight.new_empty(len(sublayer.weight), len(columns), dtype=dtype)
    for first in range(0, len(weight), ROWS_TOGETHER):
        rows = slice(first, first + ROWS_TOGETHER)
        change = own.rows(rows).blend(drift and drift.rows(rows), beta or 0.0)
        weight[rows] = sublayer.weight[rows][:, columns].to(change.weight) + change.weight
    if sublayer.intercept:
        added = own.bias if drift is None else own.bias + (beta or 0.0) * drift.bias
        bias = added if bias is None else bias.to(added) + added
    bias = None if bias is None else bias.to(dtype)
    return Candidate(form, kept, columns, weight, bias, ridge, beta)
