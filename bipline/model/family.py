"""What a family's file says: fields, what follows from them for a config; and all there are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bipline.base.errors import InvalidInput
from bipline.model.allowed import Allowed
from bipline.model.builds import Axes, Build, build_placed
from bipline.model.rope import rope_type

EMBEDDING = "model.embed_tokens.weight"
# What the model_type of a model whose blocks differ in width begins with.
PER_LAYER_PREFIX = "per_layer_"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Norm(_Table):
    """How what enters a sublayer is normed: by its root mean square, or centred, its deviation.

    ``gain`` is what its weight stands for; ``eps`` is a key of the config, or a number.
    """

    gain: Literal["weight", "one_plus_weight", "none"] = "weight"
    centred: bool = False
    eps: str | float = "rms_norm_eps"


RMS_NORM = Norm()


class Variant(_Table):
    """What is otherwise where a config says so: some of a family's fields, under their names."""

    where: dict[str, Any]
    fields: dict[str, Any]


class Family(_Table):
    """What one ``model_type`` is built like and what its class can hold."""

    build: str
    architecture: str
    heads_must_divide_hidden_size: bool
    # Engines that take hidden_size / heads for head_dim, whatever a config says: llama.cpp, vLLM.
    head_dim_from_hidden_size: bool = False
    always_biased: tuple[str, ...] = ()
    bias_flags: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    # Norms of queries and keys inside each head: always, never, or where this key says so.
    head_norms: bool | str
    # Norms of queries and keys over all heads together.
    all_heads_norms: bool = False
    alternatives: tuple[str, ...]
    when_converted: dict[str, Any]
    norm: Norm = RMS_NORM
    # The key of its config that names the activation of its FFN.
    activation: str = "hidden_act"
    # The keys of its config by which its experts clamp what they gate: alpha and the limit.
    clamped_gate: tuple[str, ...] = ()
    # Its class has no attention but the one that holds every token's weights.
    eager_attention: bool = False
    # Its class computes attention by code of its own, of which weights are not to be had.
    own_attention: bool = False
    # It keeps keys and values of earlier tokens once for every query head.
    caches_queries: bool = False
    # Its sublayers add to the stream themselves: its attention takes that as ``residual``.
    sublayers_add: bool = False
    # Its class changes what a sublayer gives while it adds that to the stream.
    adds_in_place: bool = False
    # Its blocks give a tuple, what they give to the next one first.
    gives_tuple: bool = False
    # Its config says how positions turn for each kind of block.
    rope_by_layer_type: bool = False
    # How many times as wide as the stream an FFN is where a config says nothing of it.
    ffn_times: int = 0
    # Its class holds no other width of it, so that whole blocks alone can go.
    ffn_fixed: bool = False
    # The key of its config by which all that a sublayer adds to the stream is multiplied.
    output_multiplier: str = ""
    # Its class takes hidden_size for the width of its heads, so that none can go: always, or with
    # these types of positions.
    heads_fixed: bool = False
    rope_fixes_heads: tuple[str, ...] = ()
    # The key of its config that counts the blocks behind the last one that guess later tokens. They
    # are none of the decoder's; transformers leaves them out, and so do we.
    predicting_blocks: str = ""
    # What full names of a block's tensors begin with, if not as in its build.
    block_prefix: str = ""
    # Tensors of the build under other names, those that it lacks, and matrices stored as one.
    renamed: dict[str, str] = Field(default_factory=dict)
    without: tuple[str, ...] = ()
    fused: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    # Of these, those whose rows go group by group, and those that lie transposed.
    by_group: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    # Tensors outside of blocks beside those of the build, and what old files hold and no class
    # reads, by how its name ends.
    outside: dict[str, Axes] = Field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    # Learned positions have so many rows more than max_position_embeddings; None where none are.
    rows_before_positions: int | None = None
    # What matrices are called where they lie, if its class calls them otherwise.
    stored: dict[str, str] = Field(default_factory=dict)
    # transformers has no class for it, but one that computes the same, of this family, and other
    # classes of its model_type compute something else. Code that checkpoints name is replaced.
    read_as: str = ""
    other_classes: dict[str, str] = Field(default_factory=dict)
    names_code: bool = False
    # Other names of keys, keys of every config that its class has not, those whose value its class
    # decides, and what a kind of positions takes in it beside what it takes everywhere.
    aliases: dict[str, str] = Field(default_factory=dict)
    # What its class calls keys of every config, and keys that may say nothing but another one's.
    spelled: dict[str, str] = Field(default_factory=dict)
    # Of these, those that its class takes by either name.
    either: tuple[str, ...] = ()
    equal_keys: dict[str, str] = Field(default_factory=dict)
    # What its class computes with in the place of these keys' values.
    set_keys: dict[str, Any] = Field(default_factory=dict)
    lacks_keys: tuple[str, ...] = ()
    # Keys that every config may leave to its class by a null, but not to this one.
    never_null: tuple[str, ...] = ()
    written_out: tuple[str, ...] = ()
    rope_takes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    # What its config may say beyond what every family's may, and what its class takes where a
    # config says nothing.
    keys: dict[str, Allowed] = Field(default_factory=dict)
    defaults: dict[str, Any]
    variants: tuple[Variant, ...] = ()

    def has_head_norms(self, config: Mapping[str, Any]) -> bool:
        """Whether a model with this config norms queries and keys inside each head."""
        key = self.head_norms
        return bool(config.get(key)) if isinstance(key, str) else key

    def bias_places(self, config: Mapping[str, Any]) -> set[str]:
        """Where a model of this family with this config has biases."""
        flagged = (places for flag, places in self.bias_flags.items() if config.get(flag))
        return set(self.always_biased).union(*flagged)

    def can_hold(self, places: set[str]) -> bool:
        """Whether the class can have biases at these places, and perhaps at others too."""
        return self.bias_places(dict.fromkeys(self.bias_flags, True)) >= places

    def flags_for(self, places: set[str]) -> dict[str, bool] | None:
        """The config flags that give biases at exactly these places; None if none can."""
        flags = {flag: set(held) <= places for flag, held in self.bias_flags.items()}
        return flags if self.bias_places(flags) == places else None

    def fixes_heads(self, config: Mapping[str, Any]) -> bool:
        """Whether its class holds no model with other heads than one with this config has."""
        return self.heads_fixed or rope_type(config) in self.rope_fixes_heads

    def turns(self, share: float) -> bool:
        """Whether its class can turn this share of every head by its position."""
        return share == 1 or "partial_rotary_factor" in self.keys

    @property
    def words(self) -> dict[str, str]:
        """The names that keys have in every family's config, by those that its class gives them."""
        return {**self.aliases, **{own: key for key, own in self.spelled.items()}}

    @property
    def turns_heads(self) -> bool:
        """Whether heads are turned by their positions at all."""
        return "rope_parameters" not in self.lacks_keys

    @property
    def block_lists(self) -> list[str]:
        """The keys of its config that list something for each block."""
        return [key for key, allowed in self.keys.items() if allowed.lists == "blocks"]

    def named(self, names: Mapping[str, Axes]) -> dict[str, Axes]:
        """Tensors of its build as this family has them."""
        kept = {name: axes for name, axes in names.items() if name not in self.without}
        return {self.renamed.get(name, name): axes for name, axes in kept.items()}


@cache
def families() -> dict[str, Family]:
    """Every family by its ``model_type``."""
    files = sorted(Path(__file__).with_name("families").glob("*.json"))
    return {path.stem: Family.model_validate_json(path.read_bytes()) for path in files}


def family_names() -> list[str]:
    """The ``model_type`` values that are supported."""
    return sorted(families())


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``, per-layer or not. Raises InvalidInput for an unknown one."""
    found = families().get(model_type.removeprefix(PER_LAYER_PREFIX))
    if found is None:
        known = ", ".join(family_names())
        raise InvalidInput(
            f"model_type {model_type!r} is not supported; supported: {known} (`bipline models "
            "NAME` tells the kind that another is nearest to)"
        )
    return found


@cache
def _variant(model_type: str, number: int) -> Family:
    family = family_of(model_type)
    return Family.model_validate({**family.model_dump(), **family.variants[number].fields})


def family_in(config: Mapping[str, Any]) -> Family:
    """The family of a config whose defaults are written out, as it is for what the config says."""
    family = family_of(model_type := str(config["model_type"]))
    for number, variant in enumerate(family.variants):
        if all(config.get(key) == value for key, value in variant.where.items()):
            return _variant(model_type, number)
    return family


def spelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in the words of its class: without keys that this lacks, and under its names."""
    family = families().get(str(config["model_type"]).removeprefix(PER_LAYER_PREFIX))
    if family is None:
        return dict(config)
    own = {key: value for key, value in config.items() if key not in family.lacks_keys}
    return {family.spelled.get(key, key): value for key, value in own.items()}


def build_of(family: Family) -> Build:
    """The tensor table a family uses, with the names of its own root."""
    return build_placed(family.build, family.block_prefix, family.renamed.get(EMBEDDING, ""))
