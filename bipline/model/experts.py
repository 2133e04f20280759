"""Experts of a mixture by their names: a build names a tensor once, for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

# In names of a build and of a family: the number of each expert.
EXPERT = "{expert}"
# What the class of some calls the matrices of all experts.
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
# Of what all tokens pass through beside experts.
SHARED_GATE = "mlp.shared_experts.gate_proj.weight"
SHARED_UP = "mlp.shared_experts.up_proj.weight"
SHARED_DOWN = "mlp.shared_experts.down_proj.weight"
# What down_proj of one is called where each lies by itself.
OWN_DOWN = f"mlp.experts.{EXPERT}.down_proj.weight"
T = TypeVar("T")
Names = Mapping[str, tuple[str, ...]]


def of_each_expert(names: Names, experts: int) -> dict[str, tuple[str, ...]]:
    """Names, and what is said of them, with those of experts told for each; they come last."""
    told = {name: held for name, held in names.items() if EXPERT not in name}
    for expert in range(experts):
        for name, held in names.items():
            if EXPERT in name:
                told[name.format(expert=expert)] = tuple(e.format(expert=expert) for e in held)
    return told


def in_turn(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Those of gates and those of ups, along a last axis where the two lie in turn."""
    return stored[..., ::2], stored[..., 1::2]


def without_number(name: str) -> str:
    """A name of one expert's as a build has it for all of them."""
    return re.sub(r"(?<=\bexperts\.)\d+(?=\.)", EXPERT, name)


def of_experts(names: Iterable[str], each: Sequence[T]) -> dict[str, T]:
    """What there is of each expert, in their order, by the names of its tensors."""
    return {
        name.format(expert=expert): held
        for name in names
        if EXPERT in name
        for expert, held in enumerate(each)
    }


def renumbered(names: Iterable[str], kept: Sequence[int]) -> dict[str, str]:
    """What experts' tensors are called in the model they come from, by what they are called now.

    ``kept`` are the experts that stay, ascending; ``names`` those of a build.
    """
    return {
        name.format(expert=place): name.format(expert=expert)
        for name in names
        if EXPERT in name
        for place, expert in enumerate(kept)
    }


def in_class(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a block with the down_proj of every expert as their class has them; others stay.

    Those of experts are all there, or none of them is.
    """
    told = {name: tensor for name, tensor in tensors.items() if without_number(name) == name}
    if each := len(tensors) - len(told):
        told[DOWN] = torch.stack([tensors[OWN_DOWN.format(expert=one)] for one in range(each)])
    return told
