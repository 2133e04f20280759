"""Sizes: how wide a decoder is, and how wide each of its blocks, read from its config.json.

Most models are equally wide in every block. Where blocks differ, the model has a ``model_type``
of its own, that of its family behind ``per_layer_``, and its config lists every block's widths.
One :class:`ModelShape` serves both: whoever asks for the shape of a block gets that block's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from bipline.base.errors import InvalidInput
from bipline.model.family import PER_LAYER_PREFIX, build_of, families, family_in

# Where a per-layer config lists the sizes of every block; 0 where a block lacks the sublayer.
PER_LAYER_LISTS = {
    "num_attention_heads": "num_attention_heads_per_layer",
    "num_key_value_heads": "num_key_value_heads_per_layer",
    "intermediate_size": "intermediate_size_per_layer",
}
# Matrices of an FFN: gate, up and down; up and down.
GATED, PLAIN = 3, 2
# What a config calls the number of an FFN's experts, which is there where it has some.
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
# Channels of every expert stay in multiples of this: transformers runs experts by a grouped product
# (torch.nn.functional.grouped_mm), whose rows must be multiples of 16 bytes, two bytes a number.
EXPERT_MULTIPLE = 8


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockWidths(_Table):
    """How wide one block of a per-layer model is; 0 where it lacks the sublayer."""

    num_key_value_heads: int
    intermediate_size: int


class ModelShape(_Table):
    """The sizes of a decoder, under transformers' names.

    Where its blocks differ, ``per_layer`` has the widths of each, and the heads, KV heads and
    intermediate_size are those of the widest; :meth:`block` gives the sizes of one block of
    either kind. Where an FFN has ``num_experts``, intermediate_size is that of each; beside them
    it may have ``shared_channels``, which every token passes through. The first ``dense_blocks``
    may have no experts, but an FFN of ``dense_channels``. An FFN is made of ``ffn_matrices``: gate,
    up and down, or up and down alone. ``positions`` are rows of learned positions; 0 for none.
    ``caches_queries``: its class keeps keys and values once for every query head.
    ``within_experts`` is no size: what goes is channels of every expert (:meth:`within`).
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_hidden_layers: int
    vocab_size: int
    tie_word_embeddings: bool
    num_experts: int = 0
    num_experts_per_tok: int = 0
    ffn_matrices: int = GATED
    positions: int = 0
    caches_queries: bool = False
    shared_channels: int = 0
    dense_blocks: int = 0
    dense_channels: int = 0
    within_experts: bool = False
    per_layer: tuple[BlockWidths, ...] = ()

    def block(self, index: int) -> ModelShape:
        """The sizes of one block, as those of a model of that block alone.

        A block that lacks a sublayer has 0 heads, or an intermediate_size of 0.
        """
        alone: dict[str, Any] = {"num_hidden_layers": 1, "per_layer": (), "dense_blocks": 0}
        if index < self.dense_blocks:
            dense = {"intermediate_size": self.dense_channels, "shared_channels": 0}
            alone |= {"num_experts": 0, "num_experts_per_tok": 0, **dense}
        if self.per_layer:
            widths = self.per_layer[index]
            heads = widths.num_key_value_heads * self.queries_per_group
            alone |= {"num_attention_heads": heads, **widths.model_dump()}
        return self.model_copy(update=alone)

    def within(self, experts: bool = True) -> ModelShape:
        """The same sizes, where channels of every expert go and no whole expert."""
        return self.model_copy(update={"within_experts": experts})

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one KV head (1 for multi-head attention, 0 without attention)."""
        return self.num_attention_heads // max(1, self.num_key_value_heads)

    @property
    def group_weights(self) -> int:
        """Linear weights of one attention group: rows of q, k, v and columns of o."""
        return 2 * self.hidden_size * self.head_dim * (self.queries_per_group + 1)

    @property
    def query_head_weights(self) -> int:
        """Linear weights of one query head alone: rows of q and columns of o."""
        return 2 * self.hidden_size * self.head_dim

    @property
    def channel_weights(self) -> int:
        """Linear weights of one FFN channel: rows of gate, if any, and up, a column of down."""
        return self.ffn_matrices * self.hidden_size

    @property
    def ffn_units(self) -> int:
        """How many parts an FFN has of which whole ones go: experts, or else channels."""
        return self.num_experts if self.loses_experts else self.intermediate_size

    @property
    def loses_experts(self) -> bool:
        """Whether what goes of an FFN is whole experts."""
        return bool(self.num_experts) and not self.within_experts

    @property
    def least_units(self) -> int:
        """The fewest of these parts that may stay: experts enough for a token, or 1."""
        return self.num_experts_per_tok if self.loses_experts else 1

    @property
    def ffn_kind(self) -> str:
        """What these parts are called where a user reads of them."""
        if not self.num_experts:
            return "FFN channels"
        return "experts" if self.loses_experts else "channels of every expert"

    @property
    def ffn_unit_weights(self) -> int:
        """Linear weights of one of them; with an expert goes its row of the router.

        A channel of every expert is one of each, and one of every shared expert.
        """
        if self.loses_experts:
            return self.expert_weights
        return max(1, self.num_experts + self.shared_experts) * self.channel_weights

    @property
    def expert_weights(self) -> int:
        """Linear weights of one expert and of its row of the router."""
        return self.intermediate_size * self.channel_weights + self.hidden_size

    @property
    def shared_experts(self) -> int:
        """How many experts' channels all tokens share."""
        return self.shared_channels // max(1, self.intermediate_size)

    @property
    def block_weights(self) -> int:
        """Linear weights of one block, the widest: what ``ratio`` is a share of."""
        attention = self.num_key_value_heads * self.group_weights
        if not self.num_experts:
            return attention + self.intermediate_size * self.channel_weights
        shared = self.shared_channels * self.channel_weights
        return attention + self.num_experts * self.expert_weights + shared

    @property
    def linear_weights(self) -> int:
        """Linear weights of all blocks together, each counted with its own widths."""
        if not (self.per_layer or self.dense_blocks):
            return self.num_hidden_layers * self.block_weights
        return sum(self.block(index).block_weights for index in range(self.num_hidden_layers))

    @property
    def token_weights(self) -> int:
        """Linear weights that one token is multiplied with in all blocks: not of every expert."""
        idle = self.num_experts - self.num_experts_per_tok
        return self.linear_weights - (self.num_hidden_layers - self.dense_blocks) * idle * (
            self.intermediate_size * self.channel_weights
        )

    @property
    def token_channels(self) -> int:
        """FFN channels that one token passes through in a block: not those of every expert."""
        if not self.num_experts:
            return self.intermediate_size
        return self.num_experts_per_tok * self.intermediate_size + self.shared_channels

    def axis_size(self, axis: str) -> int:
        """The length of a named axis in rows or columns."""
        sizes = {
            "query_heads": self.num_attention_heads * self.head_dim,
            "kv_heads": self.num_key_value_heads * self.head_dim,
            "heads": self.num_attention_heads,
            "ffn_channels": self.intermediate_size,
            "gate_up_channels": 2 * self.intermediate_size,
            "experts": self.num_experts,
            "shared_channels": self.shared_channels,
        }
        return int(sizes[axis] if axis in sizes else getattr(self, axis))


def check_holds(
    shape: ModelShape,
    ffn_units: int,
    num_key_value_heads: int,
    blocks: Sequence[int] | None = None,
) -> None:
    """Raise InvalidInput where one of these blocks, or of all, is narrower than that already.

    The FFN of a block without experts beside blocks with some stays as it is.
    """
    for index in range(shape.num_hidden_layers) if blocks is None else blocks:
        block = shape.block(index)
        units = min(ffn_units, block.ffn_units) if index < shape.dense_blocks else ffn_units
        if block.num_key_value_heads < num_key_value_heads or block.ffn_units < units:
            raise InvalidInput(
                f"block {index} has {block.num_key_value_heads} attention groups and "
                f"{block.ffn_units} {block.ffn_kind}, so not every block can keep "
                f"{num_key_value_heads} and {ffn_units}; prune the dense model, or give a plan of "
                "the per-layer layout"
            )


def width_key(config: Mapping[str, Any]) -> str:
    """What a config calls the number of channels of an FFN, or of each of its experts."""
    return "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"


def experts_key(config: Mapping[str, Any]) -> str | None:
    """What a config calls the number of an FFN's experts; None where it has none."""
    return next((key for key in EXPERT_KEYS if key in config), None)


def is_per_layer(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a model whose blocks may differ in width."""
    return str(config.get("model_type")).startswith(PER_LAYER_PREFIX)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Read the sizes from a config.json, with transformers' defaults for absent fields.

    Raises InvalidInput when a size is missing, the KV heads do not divide the heads, or the
    blocks' widths are not what the other sizes say.
    """
    hidden_size, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    width = width_key(config)
    shape = ModelShape(
        hidden_size=hidden_size,
        intermediate_size=_size(config, width, least=0 if is_per_layer(config) else 1),
        num_attention_heads=heads,
        num_key_value_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", hidden_size // heads),
        num_hidden_layers=_size(config, "num_hidden_layers"),
        vocab_size=_size(config, "vocab_size"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        **_experts(config),
        **_of_family(config),
    )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise InvalidInput(
            f"config.json: num_attention_heads {shape.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {shape.num_key_value_heads}"
        )
    return _with_widths(shape, config) if is_per_layer(config) else shape


def _of_family(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of how many matrices an FFN is made, learned positions, and what a cache keeps.

    A ``model_type`` of no family is refused elsewhere.
    """
    if str(config.get("model_type")).removeprefix(PER_LAYER_PREFIX) not in families():
        return {}
    family = family_in(config)
    found: dict[str, Any] = {"ffn_matrices": GATED if build_of(family).gated else PLAIN}
    found["caches_queries"] = family.caches_queries
    if (before := family.rows_before_positions) is not None:
        found["positions"] = before + _size(config, "max_position_embeddings")
    return found


def _experts(config: Mapping[str, Any]) -> dict[str, int]:
    """How many experts an FFN has and how many a token passes through; nothing without any."""
    if (key := experts_key(config)) is None:
        return {}
    count, taken = _size(config, key), _size(config, "num_experts_per_tok")
    if taken > count:
        raise InvalidInput(f"config.json: num_experts_per_tok is {taken}, and {key} only {count}")
    experts = {"num_experts": count, "num_experts_per_tok": taken}
    return experts | _beside_experts(config)


def _beside_experts(config: Mapping[str, Any]) -> dict[str, int]:
    """What there is beside experts: channels that all tokens share, and first blocks without."""
    shared, dense = (
        _size(config, key, 0, least=0) for key in ("n_shared_experts", "first_k_dense_replace")
    )
    if dense and dense >= (layers := _size(config, "num_hidden_layers")):
        raise InvalidInput(
            f"config.json: first_k_dense_replace is {dense}, and none of {layers} blocks has "
            "experts; give a model of which some have"
        )
    return {
        "shared_channels": shared and shared * _size(config, "moe_intermediate_size"),
        "dense_blocks": dense,
        "dense_channels": dense and _size(config, "intermediate_size"),
    }


def _size(config: Mapping[str, Any], name: str, default: int | None = None, least: int = 1) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or value < least:
        family = families().get(str(config.get("model_type")))
        called = family.spelled.get(name, name) if family else name
        raise InvalidInput(
            f"config.json: {called} is {value!r}, not a whole number of at least {least}"
        )
    return value


def _with_widths(shape: ModelShape, config: Mapping[str, Any]) -> ModelShape:
    """The shape with its blocks' widths, which must agree with its other sizes."""
    lists = {size: _widths(config, name, shape) for size, name in PER_LAYER_LISTS.items()}
    for size, widths in lists.items():
        if max(widths) != getattr(shape, size):
            raise InvalidInput(
                f"config.json: {size} is {getattr(shape, size)}, its widest block has {max(widths)}"
            )
    groups, channels = lists["num_key_value_heads"], lists["intermediate_size"]
    if lists["num_attention_heads"] != [shape.queries_per_group * count for count in groups]:
        raise InvalidInput("config.json: blocks differ in the query heads that share one KV head")
    return shape.model_copy(
        update={
            "per_layer": tuple(
                BlockWidths(num_key_value_heads=kv, intermediate_size=ffn)
                for kv, ffn in zip(groups, channels, strict=True)
            )
        }
    )


def _widths(config: Mapping[str, Any], name: str, shape: ModelShape) -> list[int]:
    widths = config.get(name)
    whole = isinstance(widths, list) and all(type(each) is int and each >= 0 for each in widths)
    if not whole or len(widths) != shape.num_hidden_layers:  # type: ignore[arg-type]
        raise InvalidInput(
            f"config.json: {name} is not a list of {shape.num_hidden_layers} whole numbers"
        )
    return list(widths)  # type: ignore[arg-type]
