"""One count for each of many parts: the least error that removes enough, found exactly.

A multiple-choice knapsack, solved by dynamic programming over removed weights. Weights are whole
multiples of their greatest common divisor, so nothing is rounded; at 7B that is some ten thousand
states and a few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Part:
    """What can be kept of one part: weights that go and the error it costs, choice by choice."""

    removed: tuple[int, ...]
    errors: tuple[float, ...]


def cheapest(parts: Sequence[Part], target: float) -> list[int]:
    """The choice of every part with the least sum of errors that removes ``target`` weights.

    Of equal sums the one that removes least. Raises ValueError when the target is out of reach.
    """
    if sum(max(part.removed) for part in parts) < target - 1e-6:
        raise ValueError("more is to go than the parts hold")
    unit = math.gcd(*(weight for part in parts for weight in part.removed)) or 1
    most = sum(max(part.removed) for part in parts) // unit
    least = math.ceil(target / unit - 1e-9)
    best = torch.full((most + 1,), math.inf, dtype=torch.float64)
    best[0] = 0.0
    taken = []
    for part in parts:
        best, choice = _with_part(best, part, unit)
        taken.append(choice)
    state = least + int(torch.argmin(best[least:]))
    chosen = []
    for part, choice in zip(reversed(parts), reversed(taken), strict=True):
        index = int(choice[state])
        chosen.append(index)
        state -= part.removed[index] // unit
    return chosen[::-1]


def _with_part(best: torch.Tensor, part: Part, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Least errors per removed weight with one part more, and the choice that gives each."""
    after = torch.full_like(best, math.inf)
    choice = torch.zeros(len(best), dtype=torch.int32)
    for index, (removed, error) in enumerate(zip(part.removed, part.errors, strict=True)):
        shift = removed // unit
        candidate = best[: len(best) - shift] + error
        better = candidate < after[shift:]
        after[shift:][better] = candidate[better]
        choice[shift:][better] = index
    return after, choice
