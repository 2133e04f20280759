"""Families as data: what one ``model_type`` of transformers is built like and what it can hold.

A file of this folder is a family: its build (:mod:`bipline.model.builds`), where it has biases,
whether its class needs heads that divide hidden_size, how it norms and scales, what its config may
say and what its class takes where it says nothing. A new family of an existing build is one file
and no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.model.builds import Axes
from bipline.model.experts import of_each_expert
from bipline.model.family import (
    PER_LAYER_PREFIX,
    Family,
    build_of,
    families,
    family_in,
    family_of,
)
from bipline.model.fused import Lying, Parts, stored_parts
from bipline.model.rope import partial_rotary_factor
from bipline.model.shapes import (
    PER_LAYER_LISTS,
    ModelShape,
    check_holds,
    experts_key,
    is_per_layer,
    shape_of,
    width_key,
)

# Where compensation adds a bias: at o_proj and down_proj.
BIASED = {"attention_output", "mlp"}


def predicting_prefixes(family: Family, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What names begin with of blocks behind the last one that guess later tokens; most have none.

    They are numbered on from the decoder's own.
    """
    first, count = shape_of(config).num_hidden_layers, int(config.get(family.predicting_blocks, 0))
    prefix = build_of(family).block_prefix
    return tuple(prefix.format(index=index) for index in range(first, first + count))


def block_axes(family: Family, config: Mapping[str, Any], index: int = 0) -> dict[str, Axes]:
    """Tensor names inside one block of a model with this config, and their axes."""
    build = build_of(family)
    shape = shape_of(config).block(index)
    names: dict[str, Axes] = dict(build.block_weights)
    for place in sorted(family.bias_places(config)):
        names.update(build.biases[place])
    if family.has_head_norms(config):
        names.update(build.head_norms)
    if family.all_heads_norms:
        names.update(build.all_heads_norms)
    absent = build.absent(shape.num_key_value_heads, shape.ffn_units, shape.num_experts > 0)
    held = of_each_expert(family.named(names), shape.num_experts)
    return {name: axes for name, axes in held.items() if not name.startswith(absent)}


def block_parts(family: Family, config: Mapping[str, Any], index: int = 0) -> Parts:
    """What is stored of one block, by its name inside it, and the tensors in its rows."""
    stored = {name: (held,) for held, name in family.stored.items()}
    lies = of_each_expert({**family.fused, **stored}, shape_of(config).num_experts)
    return stored_parts(lies, block_axes(family, config, index))


def block_lying(family: Family, config: Mapping[str, Any], index: int = 0) -> Lying:
    """How what is stored of one block lies."""
    groups = max(1, shape_of(config).block(index).num_key_value_heads)
    return Lying(family.by_group, family.transposed, groups)


def tensor_shapes(
    family: Family, config: Mapping[str, Any], shape: ModelShape
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that is stored of a model with this config, in file order.

    Sizes are those in ``shape``.
    """
    build = build_of(family)
    outside = {**family.named(build.outside_weights), **family.outside}
    shapes = {n: _sizes(shape, [axes]) for n, axes in outside.items()}
    for index in range(shape_of(config).num_hidden_layers):
        prefix = build.block_prefix.format(index=index)
        axes, sizes = block_axes(family, config, index), shape.block(index)
        lying = block_lying(family, config, index)
        for name, parts in block_parts(family, config, index).items():
            found = _sizes(sizes, [axes[part] for part in parts])
            shapes[prefix + name] = found[::-1] if lying.turned(name) else found
    if not shape_of(config).tie_word_embeddings:
        shapes.update({n: _sizes(shape, [axes]) for n, axes in build.output_weights.items()})
    return shapes


def _sizes(shape: ModelShape, parts: Sequence[Axes]) -> tuple[int, ...]:
    """The shape of parts that are stored as one, one below the other."""
    _, *rest = parts[0]
    rows = sum(shape.axis_size(axes[0]) for axes in parts)
    return (rows, *map(shape.axis_size, rest))


def exported_config(
    config: Mapping[str, Any],
    ffn_units: int,
    num_key_value_heads: int,
    kept_blocks: Sequence[int] | None = None,
    queries_per_group: int | None = None,
    channels_per_expert: int | None = None,
) -> dict[str, Any]:
    """The config.json of a model pruned to uniform widths, loadable by a stock class.

    ``ffn_units`` are FFN channels, or experts where the FFN has some; ``kept_blocks`` the blocks
    that stay, ascending; None for all of them. So many query heads stay for every KV head
    (``queries_per_group``), and channels of every expert; None for all. The family stays
    where its class holds the new head count; else the same tensors go under an alternative
    family's name (LLaMA becomes Mistral, or SeedOss where there are biases; Qwen2 becomes SeedOss).
    Sizes and head_dim are written out; transformers_version stays, because a Mistral config
    without one makes transformers rewrite the tokenizer.
    Raises InvalidInput when no class of the table holds the result, or a block that stays is
    narrower than that already.
    """
    import transformers

    shape = shape_of(config)
    check_holds(shape, ffn_units, num_key_value_heads, kept_blocks)
    config = stock_config(config if kept_blocks is None else with_blocks(config, kept_blocks))
    heads = num_key_value_heads * (queries_per_group or shape.queries_per_group)
    if family_in(config).ffn_fixed and ffn_units != shape.ffn_units:
        raise InvalidInput(
            f"no transformers class holds a {config['model_type']} with {ffn_units} FFN channels; "
            "whole blocks alone can go"
        )
    if (model_type := holding_class(config, heads)) is None:
        raise InvalidInput(
            f"no transformers class holds a {config['model_type']} with {heads} heads of "
            f"head_dim {shape.head_dim}; choose another ratio"
        )
    family = family_of(model_type)
    pruned = {
        **config,
        "model_type": model_type,
        "architectures": [family.architecture],
        **_ffn_sizes(config, ffn_units, channels_per_expert),
        "num_attention_heads": heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": shape.head_dim,
        "transformers_version": config.get("transformers_version") or transformers.__version__,
    }
    pruned.pop("_name_or_path", None)  # where the source lay is no property of the model
    if family.predicting_blocks:
        pruned[family.predicting_blocks] = 0  # they stay behind
    if model_type == config["model_type"]:
        return pruned
    return _of_another_class(pruned, config, family)


def _of_another_class(
    pruned: dict[str, Any], config: Mapping[str, Any], family: Family
) -> dict[str, Any]:
    """A pruned model's config as ``family`` has it; ``config`` is that of the class before."""
    source = family_of(config["model_type"])
    for name in (*source.bias_flags, *(source.keys.keys() - family.keys.keys())):
        pruned.pop(name, None)
    flags = family.flags_for(source.bias_places(config)) or {}
    added = {key: v for key, v in family.when_converted.items() if key not in source.keys}
    return {**pruned, **added, **flags}


def _ffn_sizes(
    config: Mapping[str, Any], ffn_units: int, channels_per_expert: int | None
) -> dict[str, int]:
    """What a config says of its FFNs where so much stays of each."""
    if (key := experts_key(config)) is None:
        return {width_key(config): ffn_units}
    inside = {} if channels_per_expert is None else {width_key(config): channels_per_expert}
    return {key: ffn_units, **inside}


def with_output_biases(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with biases at o_proj and down_proj, and where its class then has them too.

    Raises InvalidInput where the family's class cannot have them.
    """
    family = family_in(config)
    flags = {flag: True for flag, places in family.bias_flags.items() if BIASED & set(places)}
    biased = {**config, **flags}
    if not family.bias_places(biased) >= BIASED:
        able = [name for name, each in sorted(families().items()) if each.can_hold(BIASED)]
        raise InvalidInput(
            f"{family.architecture} has no bias at o_proj and down_proj, so none can be added; "
            f"use compensation least-squares or obs with bias=auto (biases: {', '.join(able)})"
        )
    return biased


def stock_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config under its family's own model_type, as wide everywhere as its widest block."""
    own = {*PER_LAYER_LISTS.values(), "auto_map"} if is_per_layer(config) else set()
    stock = {name: value for name, value in config.items() if name not in own}
    if own:
        stock["model_type"] = str(config["model_type"]).removeprefix(PER_LAYER_PREFIX)
        stock["architectures"] = [family_of(stock["model_type"]).architecture]
    return stock


def with_blocks(config: Mapping[str, Any], kept_blocks: Sequence[int]) -> dict[str, Any]:
    """The config with these blocks alone, numbered anew: what it says of each block follows.

    Raises InvalidInput where a list has not one entry for each block.
    """
    layers = shape_of(config).num_hidden_layers
    changed = {**config, "num_hidden_layers": len(kept_blocks)}
    listed = family_in(config).block_lists
    for name in (*listed, *PER_LAYER_LISTS.values()):
        if config.get(name) is None:
            continue
        if len(config[name]) != layers:
            raise InvalidInput(f"config.json: {name} has not one entry for each of {layers} blocks")
        changed[name] = [config[name][index] for index in kept_blocks]
    if (limit := config.get("max_window_layers")) is not None:
        # From this block on attention slides; blocks that go from before it move it down.
        gone = set(range(layers)) - set(kept_blocks)
        changed["max_window_layers"] = limit - sum(index < limit for index in gone)
    if dense := config.get("first_k_dense_replace"):
        changed["first_k_dense_replace"] = sum(index < dense for index in kept_blocks)
    return changed


def holding_class(config: Mapping[str, Any], num_attention_heads: int) -> str | None:
    """The ``model_type`` whose class holds a model of this config with so many heads, if any."""
    model_type = str(config["model_type"])
    source = family_of(model_type)
    shape = shape_of(config)
    divides = shape.hidden_size % num_attention_heads == 0
    whole = shape.hidden_size == num_attention_heads * shape.head_dim
    for name in (model_type, *source.alternatives):
        family = family_of(name)
        if family.fixes_heads(config) and not whole:
            continue
        if not family.turns(partial_rotary_factor(config)):
            continue
        if family.heads_must_divide_hidden_size and not divides:
            continue
        if family.head_dim_from_hidden_size and not (whole or _slides(config)):
            continue  # transformers alone would load it
        if name == model_type or family.flags_for(source.bias_places(config)) is not None:
            return name
    return None


def heads_fixed(config: Mapping[str, Any]) -> bool:
    """Whether no class holds a model with other heads than one with this config has."""
    family = family_in(config)
    others = (family_of(name) for name in family.alternatives)
    turned = (each for each in others if each.turns(partial_rotary_factor(config)))
    return all(each.fixes_heads(config) for each in (family, *turned))


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether a block may attend to a window alone, which not every class can do."""
    return bool(config.get("use_sliding_window")) or "sliding_attention" in (
        config.get("layer_types") or ()
    )
