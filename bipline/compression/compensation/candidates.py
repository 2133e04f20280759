"""Candidates: the versions of one sublayer's matrix that are compared on held-out windows.

A sublayer's matrix is o_proj or down_proj. Every candidate is rounded to the dtype it will be
written in before it is measured, so what is compared is what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bipline.compression.compensation.closed_forms import ROWS_TOGETHER, Correction
from bipline.values.compensation import Compensation


@dataclass(frozen=True)
class Sublayer:
    """One matrix ``[d, n]`` as the source holds it, and what may be done with it.

    ``kept`` are the groups the plan keeps, each ``width`` neighbouring columns (query heads count
    as groups where these go). ``kept_by_run``: of each of so many equal runs of groups, how many
    stay whichever are chosen; empty where any may. ``importance`` is
    the diagonal of D, ``[d]``; None for the identity. ``chosen`` are the groups that OBS keeps in
    place of the plan's, once it has chosen. ``intercept``: whether the result may have a bias that
    is not the source's own. ``dtype`` is what the result is written in.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    width: int
    kept: tuple[int, ...]
    importance: Tensor | None
    intercept: bool
    chosen: tuple[int, ...] | None = None
    kept_by_run: tuple[int, ...] = ()

    @property
    def going(self) -> list[int]:
        """How many groups go, of each run."""
        kept = self.kept_by_run or (len(self.kept),)
        return [self.groups // len(kept) - count for count in kept]

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

    compensation: Compensation
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


def corrected(
    sublayer: Sublayer,
    compensation: Compensation,
    kept: tuple[int, ...],
    own: Correction,
    drift: Correction | None,
    ridge: float | None = None,
    beta: float | None = None,
) -> Candidate:
    """The kept groups with what is added to their weights, and a share of the drift's."""
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
    return Candidate(compensation, kept, columns, weight, bias, ridge, beta)
