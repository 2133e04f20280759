"""Fused tensors: several matrices of a build that are stored as one, one below the other.

A family's file says which. Everywhere else a block has the tensors of its build: they are rows of
what is stored, and nothing is copied for it. A bias lies as its matrix does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

# Matrices stored as one, by the name of that one: ``self_attn.qkv_proj`` of q, k and v.
Fused = Mapping[str, tuple[str, ...]]
# What is stored of a block, by its name inside it, and the tensors of the build in its rows.
Parts = dict[str, tuple[str, ...]]


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


def split(stored: Mapping[str, Tensor], parts: Parts, rows: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors of a block as rows of what is stored of it; ``rows`` is how many each has."""
    held: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        pieces = tensor.split([rows[part] for part in parts[name]])
        held.update(zip(parts[name], pieces, strict=True))
    return held
