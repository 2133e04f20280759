"""Families as data: how a model's tensors depend on its heads, KV heads and FFN channels.

``families.json`` holds two tables. A *build* names every tensor of a decoder block and the axis
each of its dimensions runs along; pruning is then nothing but indexing along ``query_heads``,
``kv_heads`` and ``ffn_channels``. A *family* (a transformers ``model_type``) names its build and
what its class can hold: biases, head norms, head counts that do not divide hidden_size. A new
family of an existing build needs a new entry and no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bipline.artifacts.errors import InvalidInput

Axes = tuple[str, ...]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Build(_Table):
    """The tensors of a decoder and the axes of each; names inside a block are relative to it."""

    block_prefix: str
    block_weights: dict[str, Axes]
    biases: dict[str, dict[str, Axes]]
    head_norms: dict[str, Axes]
    outside_weights: dict[str, Axes]
    output_weights: dict[str, Axes]
    ignored: tuple[str, ...]
    observed: dict[str, tuple[str, str]]


class Family(_Table):
    """What one ``model_type`` is built like and what its class can hold."""

    build: str
    architecture: str
    heads_must_divide_hidden_size: bool
    always_biased: tuple[str, ...] = ()
    bias_flags: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    head_norms: bool
    alternatives: tuple[str, ...]
    when_converted: dict[str, Any]

    def bias_places(self, config: Mapping[str, Any]) -> set[str]:
        """Where a model of this family with this config has biases."""
        flagged = (places for flag, places in self.bias_flags.items() if config.get(flag))
        return set(self.always_biased).union(*flagged)

    def flags_for(self, places: set[str]) -> dict[str, bool] | None:
        """The config flags that give biases at exactly these places; None if none can."""
        flags = {flag: set(held) <= places for flag, held in self.bias_flags.items()}
        return flags if self.bias_places(flags) == places else None


class ModelShape(_Table):
    """The sizes of a decoder, under transformers' names."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_hidden_layers: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one KV head (1 for multi-head attention)."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def group_weights(self) -> int:
        """Linear weights of one attention group: rows of q, k, v and columns of o."""
        return 2 * self.hidden_size * self.head_dim * (self.queries_per_group + 1)

    @property
    def channel_weights(self) -> int:
        """Linear weights of one FFN channel: rows of gate and up, a column of down."""
        return 3 * self.hidden_size

    @property
    def block_weights(self) -> int:
        """Linear weights of one block: what ``ratio`` is a share of."""
        attention = self.num_key_value_heads * self.group_weights
        return attention + self.intermediate_size * self.channel_weights

    def axis_size(self, axis: str) -> int:
        """The length of a named axis in rows or columns."""
        sizes = {
            "query_heads": self.num_attention_heads * self.head_dim,
            "kv_heads": self.num_key_value_heads * self.head_dim,
            "ffn_channels": self.intermediate_size,
        }
        return int(sizes[axis] if axis in sizes else getattr(self, axis))


@cache
def _tables() -> tuple[dict[str, Build], dict[str, Family]]:
    value = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    builds = {name: Build.model_validate(build) for name, build in value["builds"].items()}
    families = {name: Family.model_validate(entry) for name, entry in value["families"].items()}
    return builds, families


def family_names() -> list[str]:
    """The ``model_type`` values that are supported."""
    return sorted(_tables()[1])


def family_of(model_type: str) -> Family:
    """The family of a transformers ``model_type``. Raises InvalidInput for an unknown one."""
    families = _tables()[1]
    if model_type not in families:
        known = ", ".join(family_names())
        raise InvalidInput(f"model_type {model_type!r} is not supported; supported: {known}")
    return families[model_type]


def build_of(family: Family) -> Build:
    """The tensor table a family uses."""
    return _tables()[0][family.build]


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Read the sizes from a config.json, with transformers' defaults for absent fields.

    Raises InvalidInput when a size is missing or the KV heads do not divide the heads.
    """
    hidden_size, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    shape = ModelShape(
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", hidden_size // heads),
        num_hidden_layers=_size(config, "num_hidden_layers"),
        vocab_size=_size(config, "vocab_size"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise InvalidInput(
            f"config.json: num_attention_heads {shape.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {shape.num_key_value_heads}"
        )
    return shape


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise InvalidInput(f"config.json: {name} is {value!r}, not a positive number")
    return value


def block_axes(family: Family, config: Mapping[str, Any]) -> dict[str, Axes]:
    """Tensor names inside a block, and their axes, that a model with this config has."""
    build = build_of(family)
    names = dict(build.block_weights)
    for place in sorted(family.bias_places(config)):
        names.update(build.biases[place])
    if family.head_norms:
        names.update(build.head_norms)
    return names


def model_axes(family: Family, config: Mapping[str, Any]) -> dict[str, Axes]:
    """Every tensor of the model by full name, in file order, with its axes."""
    build = build_of(family)
    shape = shape_of(config)
    names = dict(build.outside_weights)
    for index in range(shape.num_hidden_layers):
        prefix = build.block_prefix.format(index=index)
        names.update({prefix + name: axes for name, axes in block_axes(family, config).items()})
    if not shape.tie_word_embeddings:
        names.update(build.output_weights)
    return names


def exported_config(
    config: Mapping[str, Any], intermediate_size: int, num_key_value_heads: int
) -> dict[str, Any]:
    """The config.json of a model pruned to uniform widths, loadable by a stock class.

    The family stays where its class holds the new head count; else the same tensors go under an
    alternative family's name (LLaMA becomes Mistral, or SeedOss where there are biases). Sizes
    and head_dim are written out; transformers_version stays, because a Mistral config without
    one makes transformers rewrite the tokenizer.
    Raises InvalidInput when no class of the table holds the result.
    """
    import transformers

    shape = shape_of(config)
    heads = num_key_value_heads * shape.queries_per_group
    model_type = _holding_class(config, heads)
    family = family_of(model_type)
    pruned = {
        **config,
        "model_type": model_type,
        "architectures": [family.architecture],
        "intermediate_size": intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": shape.head_dim,
        "transformers_version": config.get("transformers_version") or transformers.__version__,
    }
    pruned.pop("_name_or_path", None)  # where the source lay is no property of the model
    if model_type == config["model_type"]:
        return pruned
    source = family_of(config["model_type"])
    for flag in source.bias_flags:
        pruned.pop(flag, None)
    flags = family.flags_for(source.bias_places(config)) or {}
    return {**pruned, **family.when_converted, **flags}


def _holding_class(config: Mapping[str, Any], num_attention_heads: int) -> str:
    model_type = str(config["model_type"])
    source = family_of(model_type)
    divides = shape_of(config).hidden_size % num_attention_heads == 0
    for name in (model_type, *source.alternatives):
        family = family_of(name)
        if family.heads_must_divide_hidden_size and not divides:
            continue
        if name == model_type or family.flags_for(source.bias_places(config)) is not None:
            return name
    raise InvalidInput(
        f"no transformers class holds a {model_type} with {num_attention_heads} heads of "
        f"head_dim {shape_of(config).head_dim}; choose another ratio"
    )
