"""What a GGUF file says of a model: positions, windows, context and widths."""

from __future__ import annotations

from typing import Any

from bipline.delivery.formats.gguf.architectures import Architecture
from bipline.model.built import longest_window, transformers_config
from bipline.model.checkpoint import Checkpoint

FULL, SLIDING = "full_attention", "sliding_attention"
# A block with attention and without FFN loses its attention in llama.cpp, which also takes the
# size of all heads from the first block: zeros, which add nothing, stand in for what is missing.
ZERO_CHANNELS, ZERO_GROUPS = 8, 1


def whole_config(checkpoint: Checkpoint) -> Any:
    """transformers' config of the model, defaults included, however old its config.json."""
    return transformers_config(checkpoint.config)


def rope_parameters(checkpoint: Checkpoint, layer_type: str = FULL) -> dict[str, Any]:
    """Type, theta and whatever else the type needs, under transformers' names."""
    held = dict(getattr(whole_config(checkpoint), "rope_parameters", None) or {})
    rope = dict(held[layer_type]) if checkpoint.family.rope_by_layer_type else held
    return _settled(rope, checkpoint.shape.head_dim)


def _settled(rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Dynamic positions as those that they are within the context of the model.

    What grows with a text does so behind its end; an ``alpha`` (Hunyuan's) raises theta for all.
    """
    if rope.get("rope_type") != "dynamic":
        return rope
    alpha = rope.get("alpha") or 1.0
    theta = float(rope["rope_theta"]) * alpha ** (head_dim / (head_dim - 2))
    return {"rope_type": "default", "rope_theta": theta}


def turned_share(checkpoint: Checkpoint) -> float:
    """The share of each head that turns by its position."""
    return float(rope_parameters(checkpoint).get("partial_rotary_factor", 1.0))


def sliding_window(checkpoint: Checkpoint) -> int | None:
    """The tokens that a block which slides attends to; None where none does."""
    window = getattr(whole_config(checkpoint), "sliding_window", None)
    return int(window) if window is not None and any(sliding_blocks(checkpoint)) else None


def sliding_blocks(checkpoint: Checkpoint) -> list[bool]:
    """Which blocks attend to a window alone."""
    config = whole_config(checkpoint)
    types = getattr(config, "layer_types", None)
    if types is None:
        slide = getattr(config, "sliding_window", None) is not None
        return [slide] * checkpoint.shape.num_hidden_layers
    return [each == SLIDING for each in types]


def turned_blocks(checkpoint: Checkpoint) -> list[bool]:
    """Which blocks turn queries and keys by their positions."""
    turned = getattr(whole_config(checkpoint), "no_rope_layers", None)
    return [bool(each) for each in turned or [1] * checkpoint.shape.num_hidden_layers]


def context_length(checkpoint: Checkpoint, architecture: Architecture) -> int:
    """Positions that the file declares: where all would be attended to, no more than a window."""
    longest = longest_window(whole_config(checkpoint))
    window = sliding_window(checkpoint)
    return longest if architecture.slides or window is None else min(longest, window)


def own_widths(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Attention groups and FFN channels of every block."""
    shapes = map(checkpoint.shape.block, range(checkpoint.shape.num_hidden_layers))
    return [(shape.num_key_value_heads, shape.intermediate_size) for shape in shapes]


def written_widths(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """The same as the file has them: with zeros where llama.cpp cannot do without."""
    widths = []
    for index, (groups, channels) in enumerate(own_widths(checkpoint)):
        groups = groups or ZERO_GROUPS * (index == 0)
        widths.append((groups, channels or ZERO_CHANNELS * (groups > 0)))
    return widths
