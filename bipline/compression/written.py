"""What the smaller model comes to before it is written: tensors, parameters, bytes of shards."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from bipline.compression.allocation.widths import Widths
from bipline.compression.prune import pruned_config
from bipline.compression.slicing import Slicer
from bipline.model.checkpoint import Checkpoint
from bipline.model.shapes import ModelShape
from bipline.model.writer import DEFAULT_SHARD_BYTES, TensorSpec, shard_file_bytes
from bipline.values.origin import ModelOrigin
from bipline.values.plan import BlockPlan, Budget, Layout, PruningPlan

# As long as any digest; what a header tells of one is as long whatever it says.
SOME_DIGEST = "0" * 64


def plan_of(widths: Sequence[Widths], layout: Layout, shape: ModelShape) -> PruningPlan:
    """A plan that keeps the first units of every kind in every block: it stands for its widths."""
    return PruningPlan(
        tensor_digest=SOME_DIGEST,
        criterion="none",
        allocation="none",
        layout=layout,
        budget=Budget(asked=0, of="blocks", reached_blocks=0, reached_total=0),
        ffn_multiple=1,
        blocks=tuple(_first(each, shape.block(index)) for index, each in enumerate(widths)),
    )


def _first(widths: Widths, shape: ModelShape) -> BlockPlan:
    """The plan that keeps the first of everything in a block of this shape."""
    groups, units = range(widths.attention_groups), range(widths.ffn_units)
    queries = widths.queries_per_group
    heads = [range(queries) for _ in groups] if queries else []
    plan = BlockPlan.keeping(groups, units, bool(shape.num_experts), heads)
    if (count := widths.channels_per_expert) is None:
        return plan
    kept, shared = tuple(range(count)), tuple(range(count * shape.shared_experts))
    inside = {"expert_channels": (kept,) * len(units), "shared_channels": shared}
    return plan.model_copy(update=inside)


def written_tensors(checkpoint: Checkpoint, plan: PruningPlan) -> list[TensorSpec]:
    """The tensors that the plan leaves of a model, as they are written; no bias is added."""
    return Slicer(checkpoint, plan, pruned_config(checkpoint, plan)).specs()


def written_parameters(checkpoint: Checkpoint, widths: Sequence[Widths], layout: Layout) -> int:
    """The parameters of a model of these widths."""
    plan = plan_of(widths, layout, checkpoint.shape)
    return sum(prod(each.shape) for each in written_tensors(checkpoint, plan))


def written_bytes(
    checkpoint: Checkpoint,
    widths: Sequence[Widths],
    layout: Layout,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> int:
    """The bytes of the safetensors files of a model of these widths, headers included."""
    plan = plan_of(widths, layout, checkpoint.shape)
    metadata = ModelOrigin.of_plan(plan).metadata()
    return shard_file_bytes(written_tensors(checkpoint, plan), shard_bytes, metadata)
