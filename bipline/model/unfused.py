"""transformers' blocks with the modules of their build, under its names, whatever their class has.

What observes a block, changes its weights or takes their gradients needs not know of it then.
The class's own code runs on: where it has a module under another name, that is the same module;
in place of a fused matrix stands what gives the same outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import Tensor, nn

from bipline.model.fused import Fused, Lying, in_groups


class _Joined(nn.Module):
    """In place of a fused matrix: the outputs of its parts, which are modules of its ``owner``."""

    def __init__(self, owner: nn.Module, names: list[str], groups: int) -> None:
        super().__init__()
        # Not registered, so that the parts are the owner's alone.
        object.__setattr__(self, "owner", owner)
        self.names, self.groups = names, groups

    def forward(self, inputs: Tensor) -> Tensor:
        """What the parts make of it, one behind the other."""
        found = [getattr(self.owner, name)(inputs) for name in self.names]
        if hasattr(self.owner, "head_dim") and hasattr(self.owner, "config"):
            self._tell_heads(*(each.shape[-1] for each in found[:2]))
        return in_groups(found, self.groups)

    def _tell_heads(self, queries: int, keys: int) -> None:
        """An attention tells the outputs apart by its heads, of which there may be a selection."""
        owner: Any = self.owner
        owner.config.num_attention_heads = queries // owner.head_dim
        owner.num_key_value_heads = keys // owner.head_dim


def unfuse(block: nn.Module, fused: Fused, lying: Lying) -> None:
    """Give a block of transformers, on the meta device, each module of its build by itself."""
    for stored, parts in fused.items():
        place, _, local = stored.rpartition(".")
        # A block of a model whose blocks differ may lack the sublayer.
        if not hasattr(owner := block.get_submodule(place), local):
            continue
        module = getattr(owner, local)
        delattr(owner, local)
        if len(parts) == 1:
            module = _linear(module) if stored in lying.transposed else module
            _put(block, parts[0], module)
            # Not registered, so that its weights have one name.
            object.__setattr__(owner, local, module)
        else:
            _part(block, parts, module)
            names = [part.rpartition(".")[2] for part in parts]
            setattr(owner, local, _Joined(owner, names, lying.groups_of(f"{stored}.")))


def _part(block: nn.Module, parts: Sequence[str], matrix: Any) -> None:
    """Give each part of a fused matrix its module, in the place of its build."""
    for part in parts:
        _put(block, part, _linear(matrix))
    if hasattr(owner := block.get_submodule(parts[0].rpartition(".")[0]), "config"):
        owner.config = copy(owner.config)


def _put(block: nn.Module, name: str, module: nn.Module) -> None:
    """Register a module in a block under a name; in between there may be none yet."""
    place, _, local = name.rpartition(".")
    if place and not hasattr(block, place):
        setattr(block, place, nn.Module())
    setattr(block.get_submodule(place), local, module)


def _linear(matrix: Any) -> nn.Linear:
    """A matrix of one row: its weights are given anew in each run, as many rows as there are."""
    kind = type(matrix) if isinstance(matrix, nn.Linear) else nn.Linear
    inputs = matrix.in_features if isinstance(matrix, nn.Linear) else matrix.nx
    return kind(inputs, 1, matrix.bias is not None, "meta")
