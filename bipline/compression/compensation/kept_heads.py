"""What stays of o_proj's columns: whole groups, or query heads where a plan lists these.

Query heads are counted over all groups here, and within their group in a plan.
"""

from __future__ import annotations

from bipline.model.shapes import ModelShape
from bipline.values.plan import BlockPlan


def kept_of(plan: BlockPlan, queries: int) -> tuple[int, ...]:
    """The groups, or query heads, that a plan keeps; ``queries`` are those of a whole group."""
    if not plan.query_heads:
        return plan.attention_groups
    listed = zip(plan.attention_groups, plan.query_heads, strict=True)
    return tuple(group * queries + head for group, heads in listed for head in heads)


def keeping(plan: BlockPlan, kept: tuple[int, ...], queries: int) -> BlockPlan:
    """The plan with other groups, or other query heads of the groups that it keeps."""
    if not plan.query_heads:
        return plan.model_copy(update={"attention_groups": kept})
    heads = tuple(
        tuple(head % queries for head in kept if head // queries == group)
        for group in plan.attention_groups
    )
    return plan.model_copy(update={"query_heads": heads})


def width_of(plan: BlockPlan, shape: ModelShape) -> int:
    """Columns of o_proj that stay or go together."""
    return shape.head_dim * (1 if plan.query_heads else shape.queries_per_group)


def kept_by_run(plan: BlockPlan, shape: ModelShape) -> tuple[int, ...]:
    """How many query heads each KV head keeps, in their order; empty where whole groups go."""
    if not plan.query_heads:
        return ()
    kept = dict(zip(plan.attention_groups, plan.query_heads, strict=True))
    return tuple(len(kept.get(group, ())) for group in range(shape.num_key_value_heads))
