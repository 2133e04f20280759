"""The FFN of a block with experts: which tokens each expert sees, and what enters its down_proj.

At a token it adds the sum over its experts of r (W a + b), r the router's weight, and what all
tokens share. That is one wide matrix, which has the columns of every expert one after the other and
then those that are shared, times inputs r a (r itself for a bias) that are 0 wherever the token
does not pass. The router is transformers' own.

Shapes: ``hidden``, what enters the FFN behind its norm, and all outputs are ``[tokens, d]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bipline.model.expert_matrices import ExpertMatrices
from bipline.model.experts import DOWN, OWN_DOWN, SHARED_DOWN, SHARED_GATE, SHARED_UP
from bipline.model.gating import Gating

# What classes call a router.
ROUTERS = ("gate", "router")


@dataclass(frozen=True)
class ExpertColumns:
    """Where the columns of every expert lie in the wide matrix, of which each has as many.

    ``biased``: the last of them is a bias. ``shared`` columns lie behind those of all experts.
    """

    experts: int
    channels: int
    biased: bool
    shared: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], transposed: bool) -> ExpertColumns:
        """Those of a block's weights, as their class has them."""
        experts, rows, columns = weights[DOWN].shape
        shared = weights[SHARED_DOWN].shape[1] if SHARED_DOWN in weights else 0
        return cls(experts, rows if transposed else columns, transposed, shared)

    @property
    def places(self) -> list[slice]:
        """The columns of each expert, and those that are shared where there are some."""
        each = self.channels + self.biased
        own = [slice(first * each, (first + 1) * each) for first in range(self.experts)]
        behind = self.experts * each
        return own + ([slice(behind, behind + self.shared)] if self.shared else [])

    @property
    def total(self) -> int:
        """How many columns there are."""
        return self.places[-1].stop

    def wide(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The wide matrix ``[d, total]``, from weights as their class has them."""
        matrices = ExpertMatrices(weights, self.biased)
        held = [_with_bias(matrices, expert) for expert in range(self.experts)]
        return torch.cat([*held, *([weights[SHARED_DOWN]] if self.shared else [])], 1)

    def stored(self, wide: Tensor) -> dict[str, Tensor]:
        """The matrices, and biases, by the names that they lie under on disk."""
        own = [wide[:, place] for place in self.places[: self.experts]]
        held = {SHARED_DOWN: wide[:, self.places[-1]]} if self.shared else {}
        if not self.biased:
            return held | {OWN_DOWN.format(expert=n): each for n, each in enumerate(own)}
        biases = torch.stack([each[:, -1] for each in own])
        return held | {DOWN: torch.stack([e[:, :-1].T for e in own]), f"{DOWN}_bias": biases}


@dataclass(frozen=True)
class Part:
    """What enters the columns at ``place`` at some ``tokens`` ``[t]``: ``inputs`` ``[t, columns]``.

    They are 0 at all other tokens.
    """

    place: slice
    tokens: Tensor
    inputs: Tensor


class Mixture:
    """The FFN of a block with these weights, of however many experts; ``module`` is its class's."""

    def __init__(
        self, module: Any, weights: Mapping[str, Tensor], transposed: bool, gating: Gating
    ) -> None:
        self._module, self._weights, self._gating = module, weights, gating
        self._matrices = ExpertMatrices(weights, transposed)
        self.columns = ExpertColumns.of(weights, transposed)

    def routed(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Which experts each token passes through, and what each counts: ``[tokens, k]`` both."""
        [name] = [name for name in ROUTERS if hasattr(self._module, name)]
        prefix, router = f"mlp.{name}.", getattr(self._module, name)
        held = {n.removeprefix(prefix): w for n, w in self._weights.items() if n.startswith(prefix)}
        with _experts(router, self.columns.experts):
            _, weights, chosen = torch.func.functional_call(router, held, (hidden,))
        return chosen, weights.to(hidden)

    def parts(self, hidden: Tensor) -> Iterator[Part]:
        """What enters the wide matrix, expert by expert; those that see no token have no part."""
        (chosen, weights), places = self.routed(hidden), self.columns.places
        for expert in chosen.unique().tolist():
            tokens, which = torch.where(chosen == expert)
            weight = weights[tokens, which][:, None]
            inputs = self._gating.value(*self._matrices.gated(expert, hidden[tokens])) * weight
            if self.columns.biased:
                inputs = torch.cat([inputs, weight], 1)
            yield Part(places[expert], tokens, inputs)
        if self.columns.shared:
            gate, up = (linear(hidden, self._weights[name]) for name in (SHARED_GATE, SHARED_UP))
            every = torch.arange(len(hidden), device=hidden.device)
            yield Part(places[-1], every, self._gating.value(gate, up))

    def output(self, hidden: Tensor) -> Tensor:
        """What the FFN adds to the stream."""
        total, places = torch.zeros_like(hidden), self.columns.places
        for part in self.parts(hidden):
            number = places.index(part.place)
            shared = number == self.columns.experts
            matrix = self._weights[SHARED_DOWN] if shared else _with_bias(self._matrices, number)
            total.index_add_(0, part.tokens, linear(part.inputs, matrix))
        return total


def product(parts: Iterable[Part], wide: Tensor, tokens: int) -> Tensor:
    """The wide matrix ``[rows, total]`` times inputs in parts: ``[tokens, rows]``."""
    total = wide.new_zeros(tokens, len(wide))
    for part in parts:
        total.index_add_(0, part.tokens, linear(part.inputs, wide[:, part.place]))
    return total


def _with_bias(matrices: ExpertMatrices, expert: int) -> Tensor:
    """down_proj of one, ``[d, f]``, with its bias as a last column where it has one."""
    down = matrices.down(expert)
    if not matrices.transposed:
        return down
    return torch.cat([down, matrices.weights[f"{DOWN}_bias"][expert][:, None]], 1)


@contextmanager
def _experts(router: Any, count: int) -> Iterator[None]:
    """Tell transformers' router how many experts there are with these weights."""
    before = router.num_experts
    router.num_experts = count
    try:
        yield
    finally:
        router.num_experts = before
