"""Mixtures of experts without some of them, by the router and not by slicing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bipline.model.checkpoint import Checkpoint
from bipline.values.plan import BlockPlan, PruningPlan
from tests.per_layer import plan_of


class _Routed(torch.Tensor):
    """A router's matrix whose products have -inf at the experts that are gone."""

    gone: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each.as_subclass(Tensor) if isinstance(each, cls) else each for each in args]
        found = func(*given, **(kwargs or {}))
        if func is not torch.nn.functional.linear:
            return found
        [matrix] = [each for each in args if isinstance(each, cls)]
        return found.masked_fill(matrix.gone, -torch.inf)


def without_experts(router: Any, kept: Tensor) -> None:
    """Give the router's logits -inf at all experts but these; whatever it makes of them follows."""
    gone = torch.ones(len(router.weight), dtype=torch.bool)
    gone[kept] = False
    if hasattr(router, "e_score_correction_bias"):
        router.e_score_correction_bias[gone] = -torch.inf  # which decides, whatever the logit is
        return
    weight = router.weight.detach().as_subclass(_Routed)
    weight.gone = gone
    del router.weight
    router.weight = weight


def with_unused_expert(model: Path, expert: int) -> Path:
    """The model with routers that send no token there: two experts always lie above it."""
    path = model / "model.safetensors"
    held = load_file(path)
    for name, rows in held.items():
        if name.endswith(".gate.weight"):
            # Of two opposite rows one gives at least 0, which a row of zeros never exceeds.
            rows[expert] = 0
            places = [place for place in range(len(rows)) if place != expert]
            rows[places[1]], rows[places[3]] = -rows[places[0]], -rows[places[2]]
    save_file(held, path, {"format": "pt"})
    return model


def kept_of_experts(checkpoint: Checkpoint, ways: str) -> PruningPlan:
    """A plan that loses an attention group and ``whole`` experts, or ``channels`` of all of them.

    Blocks without experts keep their FFN.
    """
    blocks = []
    for index in range(checkpoint.shape.num_hidden_layers):
        shape = checkpoint.shape.block(index)
        groups = range(max(1, shape.num_key_value_heads - 1))
        units = range(shape.num_experts or shape.intermediate_size)
        if shape.num_experts and ways == "whole":
            units = range(1, 1 + max(shape.num_experts_per_tok, shape.num_experts // 2))
        block = BlockPlan.keeping(groups, units, bool(shape.num_experts))
        if shape.num_experts and ways == "channels":
            most, count = shape.intermediate_size, 8
            each = [tuple(range(most - count - e % 2, most - e % 2)) for e in units]
            shared = tuple(range(2, 2 + shape.shared_experts * count))
            inside = {"expert_channels": tuple(each), "shared_channels": shared}
            block = block.model_copy(update=inside)
        blocks.append(block)
    return plan_of(checkpoint, blocks, "uniform")


@torch.no_grad()
def put_experts(layer: Any, plan: BlockPlan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Set the corrected matrices of experts in a block of transformers; those that are left."""
    rest = dict(tensors)
    held = layer.mlp.experts if plan.experts else None
    if (shared := rest.pop("mlp.shared_experts.down_proj.weight", None)) is not None:
        matrix = layer.mlp.shared_experts.down_proj.weight
        matrix[:, list(plan.shared_channels or range(matrix.shape[1]))] = shared
    if "mlp.experts.down_proj" in rest:
        found = rest.pop("mlp.experts.down_proj")
        for place, expert in enumerate(plan.experts):
            every = range(held.down_proj.shape[1])
            channels = plan.expert_channels[place] if plan.expert_channels else every
            held.down_proj[expert][list(channels)] = found[place]
        held.down_proj_bias[list(plan.experts)] = rest.pop("mlp.experts.down_proj_bias")
    for place, expert in enumerate(plan.experts):
        matrix = rest.pop(f"mlp.experts.{place}.down_proj.weight", None)
        if matrix is not None:
            every = range(held.down_proj.shape[2])
            channels = plan.expert_channels[place] if plan.expert_channels else every
            held.down_proj[expert][:, list(channels)] = matrix
    return rest
