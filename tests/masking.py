"""The dense model of transformers with what a plan cuts silent: what slicing is held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bipline.compression.slicing import kept_indices
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import build_of
from bipline.model.halves import DOWN_PROJ, O_PROJ
from bipline.values.plan import BlockPlan
from tests.routed import without_experts


class OverKept(nn.Module):
    """A norm over all heads together where only some are there: the others count for nothing."""

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept, self.weight = norm, kept, norm.weight

    def forward(self, values: Tensor) -> Tensor:
        """The norm's own arithmetic on what stays, and zeros."""
        normed = torch.zeros_like(values)
        inside = {"weight": self.weight[self.kept]}
        normed[..., self.kept] = torch.func.functional_call(
            self.norm, inside, (values[..., self.kept],)
        )
        return normed


@torch.no_grad()
def silence(model: Any, checkpoint: Checkpoint, blocks: tuple[BlockPlan, ...]) -> None:
    """Zero the columns that read the groups a plan cuts, and norm heads without those that go.

    An expert that goes has the router's logit -inf.
    """
    for index, (layer, block) in enumerate(zip(layers_of(model), blocks, strict=True)):
        kept = kept_indices(block, checkpoint.shape.block(index))
        keep_columns(matrix(layer, checkpoint, O_PROJ), kept["query_heads"])
        if "experts" in kept:
            keep_inside(layer.mlp, checkpoint, block)
            router = layer.mlp.router if hasattr(layer.mlp, "router") else layer.mlp.gate
            if len(block.experts) < len(router.weight):
                without_experts(router, kept["experts"])
        else:
            keep_columns(matrix(layer, checkpoint, DOWN_PROJ), kept["ffn_channels"])
        if checkpoint.family.all_heads_norms and block.attention_groups:
            attention = layer.self_attn
            attention.q_norm = OverKept(attention.q_norm, kept["query_heads"])
            attention.k_norm = OverKept(attention.k_norm, kept["kv_heads"])


def keep_inside(mlp: Any, checkpoint: Checkpoint, block: BlockPlan) -> None:
    """Zero what the channels that go from experts, and from what all share, add."""
    from_the_right = build_of(checkpoint.family).transposed_experts
    for expert, channels in zip(block.experts, block.expert_channels, strict=False):
        down = mlp.experts.down_proj[expert]
        keep_columns(down.T if from_the_right else down, torch.tensor(channels))
    if block.shared_channels:
        keep_columns(mlp.shared_experts.down_proj.weight, torch.tensor(block.shared_channels))


def layers_of(model: Any) -> Any:
    """The blocks of a model of transformers."""
    return next(each for each in model.modules() if isinstance(each, nn.ModuleList))


def matrix(layer: Any, checkpoint: Checkpoint, name: str) -> Tensor:
    """A matrix of a block of transformers as its build has it, by its name there: a view."""
    module = called(layer, checkpoint, name)
    weight: Tensor = module.weight
    return weight if isinstance(module, nn.Linear) else weight.T


def called(layer: Any, checkpoint: Checkpoint, name: str) -> Any:
    """A module of a block of transformers, by its name in the build."""
    stored = {parts: stored for stored, parts in checkpoint.family.fused.items()}
    return layer.get_submodule(stored.get((name,), name))


def keep_columns(weight: Tensor, kept: Tensor) -> None:
    """Zero all other columns of a matrix."""
    gone = torch.ones(weight.shape[1], dtype=torch.bool)
    gone[kept] = False
    weight[:, gone] = 0
