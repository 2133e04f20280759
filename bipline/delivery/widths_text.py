"""What a report says of the widths that were kept."""

from __future__ import annotations

from bipline.delivery.contents import PackageContents
from bipline.values.plan import PruningPlan


def attention_lead(plan: PruningPlan) -> str:
    """What goes of attention, in a sentence."""
    if queries := plan.queries_per_group:
        heads = f"{queries} query head{'s' if queries > 1 else ''}"
        return f"KV heads stay, and each keeps {heads}; the others are removed."
    return "An attention group is a KV head with its query heads; groups are removed whole."


def dense_counts(contents: PackageContents) -> tuple[int, int]:
    """How many attention groups or query heads, and FFN channels or experts, there were."""
    groups, units = contents.dense_widths
    heads = contents.dense_shape.num_attention_heads
    return heads if contents.plan.queries_per_group else groups, units
