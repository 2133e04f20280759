"""Fused tensors: several matrices of a build that are stored as one, one below the other.

A family's file says which. Everywhere else a block has the tensors of its build: they are rows of
what is stored. A bias lies as its matrix does. Where rows go group by group (its queries, its key,
its value, then the next group's), or where the matrix lies transposed, the file says so too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Matrices stored as one, by the name of that one: ``self_attn.qkv_proj`` of q, k and v.
Fused = Mapping[str, tuple[str, ...]]
# What is stored of a block, by its name inside it, and the tensors of the build in its rows.
Parts = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Lying:
    """How what is stored of one block lies: modules in groups, of which there are so many."""

    by_group: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    groups: int = 1

    def groups_of(self, stored: str) -> int:
        """In how many groups the rows of each part of a stored tensor lie: one, for most."""
        return self.groups if stored.rpartition(".")[0] in self.by_group else 1

    def turned(self, stored: str) -> bool:
        """Whether a stored tensor is the transpose of its build's; a bias never is."""
        module, _, kind = stored.rpartition(".")
        return kind == "weight" and module in self.transposed


def stored_parts(fused: Fused, names: Iterable[str]) -> Parts:
    """What is stored of a block that has tensors of these ``names``, in their order."""
    held_by = {part: stored for stored, parts in fused.items() for part in parts}
    found: Parts = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if module in held_by:
            stored = held_by[module]
            found[f"{stored}.{kind}"] = tuple(f"{part}.{kind}" for part in fused[stored])
        else:
            found[name] = (name,)
    return found


def split(
    stored: Mapping[str, Tensor], parts: Parts, rows: Mapping[str, int], lying: Lying
) -> dict[str, Tensor]:
    """The tensors of a block as rows of what is stored of it; ``rows`` is how many each has.

    No copies, but of rows that lie in groups.
    """
    held: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        groups = lying.groups_of(name)
        whole = (tensor.T if lying.turned(name) else tensor).unflatten(0, (groups, -1))
        pieces = whole.split([rows[part] // groups for part in parts[name]], 1)
        held.update(zip(parts[name], (each.flatten(0, 1) for each in pieces), strict=True))
    return held


def part_rows(counts: Sequence[int], groups: int) -> list[Tensor]:
    """Which rows of what is stored are those of each part, which has so many (``counts``)."""
    every = torch.arange(sum(counts)).view(groups, -1)
    return [each.flatten() for each in every.split([count // groups for count in counts], 1)]


def in_groups(outputs: Sequence[Tensor], groups: int) -> Tensor:
    """Outputs of parts as what is stored gives them: ``[..., rows]`` each, group by group."""
    if groups == 1:
        return torch.cat(list(outputs), -1)
    return torch.cat([each.unflatten(-1, (groups, -1)) for each in outputs], -1).flatten(-2)
