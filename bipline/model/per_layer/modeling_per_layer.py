"""Decoders whose blocks differ in width: what every family of them shares.

bipline writes this file, unchanged, beside the weights of a model that it pruned to widths of
their own in every block. It opens no file and no connection; all it does is to build one of
transformers' own models and to replace the linear layers of every block by smaller ones.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# What families call the first matrices of an FFN, and its last.
FIRST = ("gate_proj", "up_proj", "c_fc", "fc1")
LAST = ("down_proj", "c_proj", "fc2")
SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
# The norms of each sublayer, by a norm that the block has; of several the first tells.
NORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "post_feedforward_layernorm": {
        "self_attn": ("input_layernorm", "post_attention_layernorm"),
        "mlp": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    },
    "post_mlp_layernorm": {
        "self_attn": ("input_layernorm", "post_self_attn_layernorm"),
        "mlp": ("post_attention_layernorm", "post_mlp_layernorm"),
    },
    "post_attention_layernorm": {
        "self_attn": ("input_layernorm",),
        "mlp": ("post_attention_layernorm",),
    },
}


@dataclass(kw_only=True)
class PerLayerWidths:
    """Fields of a config: the sizes of every block, 0 where the block lacks the sublayer.

    Fields of the same name without ``_per_layer`` hold the sizes of the widest block. The lists
    follow from transformers' ``per_layer_config`` where a config has one.
    """

    num_attention_heads_per_layer: list[int] | None = None
    num_key_value_heads_per_layer: list[int] | None = None
    intermediate_size_per_layer: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if (blocks := kwargs.get("per_layer_config")) is not None:
            for size in SIZES:
                sizes = [getattr(self, size)] * self.num_hidden_layers
                for index, own in blocks.items():
                    sizes[int(index)] = own.get(size, sizes[int(index)])
                setattr(self, f"{size}_per_layer", sizes)
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def __getattribute__(self, name: str) -> Any:
        """What a config says; of a size that differs, that of the widest block.

        transformers would refuse to tell, because it knows no class that such a size is read by.
        """
        if name in SIZES:
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)

    def validate_architecture(self) -> None:
        """Raise ValueError unless every block has its sizes; they need not divide hidden_size."""
        for name in PerLayerWidths.__dataclass_fields__:
            sizes, layers = getattr(self, name), self.num_hidden_layers
            if sizes is None or len(sizes) != layers:
                raise ValueError(f"{name} must list the size of each of {layers} blocks: {sizes}")


class NoAttention(nn.Module):
    """In place of attention, where a block has none: what it adds to the hidden states is zero."""

    def forward(self, hidden_states: Tensor, **_kwargs: Any) -> tuple[Tensor, None]:
        """Zeros of the shape of ``hidden_states``, and no attention weights."""
        return hidden_states.new_zeros(()).expand_as(hidden_states), None


class NoFFN(nn.Module):
    """In place of the FFN, where a block has none: what it adds to the hidden states is zero."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Zeros of the shape of ``hidden_states``."""
        return hidden_states.new_zeros(()).expand_as(hidden_states)


def give_widths(decoder: Any) -> None:
    """Give every block of a freshly built decoder the widths that its config lists for it."""
    config = decoder.config
    config.validate_architecture()
    heads = config.num_attention_heads_per_layer
    groups = config.num_key_value_heads_per_layer
    places = cache_places(config)
    for index, layer in enumerate(decoder.layers):
        if groups[index]:
            narrow_attention(layer.self_attn, heads[index], groups[index])
            layer.self_attn.layer_idx = places[index]
        else:
            leave_out(layer, "self_attn", NoAttention())
        if channels := config.intermediate_size_per_layer[index]:
            narrow_ffn(layer.mlp, channels)
        else:
            leave_out(layer, "mlp", NoFFN())


def leave_out(layer: Any, sublayer: str, instead: nn.Module) -> None:
    """Put something else in the place of a block's sublayer, and nothing in that of its norms."""
    norms = next(each for name, each in NORMS.items() if hasattr(layer, name))
    for name in norms[sublayer]:
        if hasattr(layer, name):
            setattr(layer, name, nn.Identity())
    setattr(layer, sublayer, instead)


def cache_places(config: Any) -> dict[int, int]:
    """Which layer of the KV cache the attention of each block uses, for blocks that have one.

    The cache has a layer for every block, of the block's type, and takes the first layer's length
    for its own. So the attentions of one type fill the layers of that type from the first on.
    """
    types = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    free = {each: [i for i, other in enumerate(types) if other == each] for each in types}
    groups = config.num_key_value_heads_per_layer
    return {index: free[types[index]].pop(0) for index, count in enumerate(groups) if count}


def narrow_attention(attention: Any, heads: int, groups: int) -> None:
    """Give an attention this many query and KV heads; queries per KV head stay as they are."""
    queries, keys = heads * attention.head_dim, groups * attention.head_dim
    # A norm over all heads together is as wide as they are; one inside a head stays.
    for name, linear, width in (("q_norm", "q_proj", queries), ("k_norm", "k_proj", keys)):
        norm = getattr(attention, name, None)
        if norm is not None and len(norm.weight) == getattr(attention, linear).out_features:
            norm.weight = nn.Parameter(norm.weight.new_ones(width))
    if hasattr(attention, "qkv_proj"):
        attention.qkv_proj = _resized(attention.qkv_proj, rows=queries + 2 * keys)
        # It tells the outputs apart by the config's heads, so it gets a config of its own.
        attention.config = copy(attention.config)
        attention.config.num_attention_heads = heads
    else:
        attention.q_proj = _resized(attention.q_proj, rows=queries)
        attention.k_proj = _resized(attention.k_proj, rows=keys)
        attention.v_proj = _resized(attention.v_proj, rows=keys)
    attention.o_proj = _resized(attention.o_proj, columns=queries)
    # For families whose attention remembers its sizes.
    attention.num_attention_heads, attention.num_key_value_heads = heads, groups


def narrow_ffn(mlp: Any, channels: int) -> None:
    """Give an FFN this many channels."""
    if hasattr(mlp, "gate_up_proj"):
        mlp.gate_up_proj = _resized(mlp.gate_up_proj, rows=2 * channels)
    for name, linear in list(mlp.named_children()):
        if name in FIRST:
            setattr(mlp, name, _resized(linear, rows=channels))
        if name in LAST:
            setattr(mlp, name, _resized(linear, columns=channels))
    mlp.intermediate_size = channels


def _resized(linear: nn.Linear, rows: int | None = None, columns: int | None = None) -> nn.Linear:
    return nn.Linear(
        linear.in_features if columns is None else columns,
        linear.out_features if rows is None else rows,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
