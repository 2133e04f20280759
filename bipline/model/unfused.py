"""transformers' blocks with each matrix of their build by itself, where their class fuses several.

What observes a block, changes its weights or takes their gradients needs not know of it then.
The class's own code runs on: in place of a fused matrix stands what gives the same outputs.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from bipline.model.fused import Fused


class _Joined(nn.Module):
    """In place of a fused matrix: the outputs of its parts, which are modules of its ``owner``."""

    def __init__(self, owner: nn.Module, names: list[str]) -> None:
        super().__init__()
        # Not registered, so that the parts are the owner's alone.
        object.__setattr__(self, "owner", owner)
        self.names = names

    def forward(self, inputs: Tensor) -> Tensor:
        """What the parts make of it, one behind the other."""
        found = [getattr(self.owner, name)(inputs) for name in self.names]
        if len(found) > 1 and hasattr(self.owner, "head_dim"):
            self._tell_heads(*(each.shape[-1] for each in found[:2]))
        return torch.cat(found, -1)

    def _tell_heads(self, queries: int, keys: int) -> None:
        """An attention tells the outputs apart by its heads, of which there may be a selection."""
        owner: Any = self.owner
        owner.config.num_attention_heads = queries // owner.head_dim
        owner.num_key_value_heads = keys // owner.head_dim


def unfuse(block: nn.Module, fused: Fused) -> None:
    """Give a block of transformers, on the meta device, each matrix of its build by itself."""
    for stored, parts in fused.items():
        place, _, local = stored.rpartition(".")
        names = [part.rpartition(".")[2] for part in parts]
        # A block of a model whose blocks differ may lack the sublayer.
        if not hasattr(owner := block.get_submodule(place), local):
            continue
        matrix = getattr(owner, local)
        for name in names:
            # Its weights are given anew in each run, as many rows as there are.
            setattr(owner, name, nn.Linear(matrix.in_features, 0, matrix.bias is not None, "meta"))
        setattr(owner, local, _Joined(owner, names))
        if len(names) > 1 and hasattr(owner, "config"):
            owner.config = copy(owner.config)
