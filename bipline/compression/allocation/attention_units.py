"""What goes of attention: whole groups, or query heads, as many of every group.

Query heads are the finer cut where a model has few KV heads. These stay then, and config.json alone
says how many query heads read each of them, so that the result is a plain checkpoint.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bipline.base.errors import InvalidInput
from bipline.compression.allocation.widths import Choices
from bipline.compression.options import BaseOptions
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import heads_fixed, holding_class
from bipline.settings.line import AllocateSettings

AttentionUnit = Literal["groups", "query-heads"]
GROUPS: AttentionUnit = "groups"
ASKED = "allocation option attention=query-heads"


class AttentionOptions(BaseOptions):
    """What goes of attention; not told where it is groups, as before it could be chosen."""

    attention: Annotated[AttentionUnit, Field(exclude_if=lambda unit: unit == GROUPS)] = GROUPS


def asks_query_heads(options: BaseOptions) -> bool:
    """Whether an allocation was asked for query heads; those that know groups alone never are."""
    return isinstance(options, AttentionOptions) and options.attention != GROUPS


def check_has_query_heads(checkpoint: Checkpoint, settings: AllocateSettings) -> None:
    """Raise InvalidInput where no query heads can go by themselves from every group."""
    shape = checkpoint.shape
    if settings.layout != "uniform":
        raise InvalidInput(
            f"{ASKED}: query heads go in the uniform layout alone, and the layout is "
            f"{settings.layout}; leave the option out, and whole attention groups go"
        )
    if shape.queries_per_group == 1:
        raise InvalidInput(
            f"{ASKED}: each of this model's {shape.num_key_value_heads} KV heads has one query "
            "head, which cannot go without it; leave the option out, and whole attention groups go"
        )
    if heads_fixed(checkpoint.config) or shape.dense_blocks:
        raise InvalidInput(
            f"{ASKED}: all attention of a {checkpoint.config['model_type']} stays; leave the "
            "option out, and the FFN takes the whole ratio"
        )


def check_some_go(checkpoint: Checkpoint, choices: Choices) -> None:
    """Raise InvalidInput where every number of query heads but the whole is held by no class."""
    if len(choices.queries_per_group) == 1:
        shape = checkpoint.shape
        raise InvalidInput(
            f"{ASKED}: with fewer than {shape.queries_per_group} query heads for each of the "
            f"{shape.num_key_value_heads} KV heads no transformers class holds a "
            f"{checkpoint.config['model_type']} of this hidden_size, or divisible_by excludes it; "
            "leave the option out"
        )


def held_by_a_class(checkpoint: Checkpoint, choices: Choices) -> Choices:
    """The choices less the head counts that no transformers class holds; all where it holds none.

    Some classes want heads that divide hidden_size (Gemma 2).
    """
    shape, counts = checkpoint.shape, choices.attention.counts
    heads = shape.num_key_value_heads if choices.queries_per_group else shape.queries_per_group
    held = tuple(n for n in counts if holding_class(checkpoint.config, n * heads))
    return choices.limited(held, choices.ffn_units) if held else choices
