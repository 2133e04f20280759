"""The config.json of a model whose blocks differ in width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bipline.model.families import stock_config, with_blocks
from bipline.model.per_layer.shipping import auto_map, own_class
from bipline.model.shapes import PER_LAYER_LISTS, PER_LAYER_PREFIX, BlockWidths, shape_of


def per_layer_config(
    config: Mapping[str, Any], kept_blocks: Sequence[int], widths: Sequence[BlockWidths]
) -> dict[str, Any]:
    """The config.json of a model with these of its blocks, each of widths of its own.

    ``kept_blocks`` are ascending indices into the source's blocks, ``widths`` in their order. All
    else is as in the source; ``config`` may itself be of a per-layer model.
    """
    import transformers

    shape = shape_of(config)
    changed = stock_config(with_blocks(config, kept_blocks))
    model_type = f"{PER_LAYER_PREFIX}{changed['model_type']}"
    sizes = {
        "num_attention_heads": [w.num_key_value_heads * shape.queries_per_group for w in widths],
        "num_key_value_heads": [w.num_key_value_heads for w in widths],
        "intermediate_size": [w.intermediate_size for w in widths],
    }
    changed |= {name: max(listed) for name, listed in sizes.items()}
    changed |= {PER_LAYER_LISTS[name]: listed for name, listed in sizes.items()}
    changed |= {
        "model_type": model_type,
        "architectures": [own_class(model_type).__name__],
        "auto_map": auto_map(model_type),
        "head_dim": shape.head_dim,
        "transformers_version": config.get("transformers_version") or transformers.__version__,
    }
    if types := _layer_types(changed):
        changed["layer_types"] = _of_attentions(types, sizes["num_key_value_heads"])
    changed.pop("_name_or_path", None)  # where the source lay is no property of the model
    return changed


def _layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """Each block's kind of attention; None where all have the same and no list says so."""
    limit = config.get("max_window_layers")
    if config.get("layer_types") or not (config.get("use_sliding_window") and limit):
        return config.get("layer_types")
    slides = [index >= limit for index in range(config["num_hidden_layers"])]
    return ["sliding_attention" if each else "full_attention" for each in slides]


def _of_attentions(types: list[str], groups: list[int]) -> list[str]:
    """The kinds with that of the first attention wherever there is none.

    Where the only attentions of a kind went, the KV cache must not have layers of it, because it
    takes the length of its first layer for its own.
    """
    held = next(each for each, count in zip(types, groups, strict=True) if count)
    return [each if count else held for each, count in zip(types, groups, strict=True)]
