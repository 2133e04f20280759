"""What a config.json may say: a list of keys with their types and ranges, family by family.

``config_keys.json`` is the list, with what each family's own file says. What it does
not name is left out, so that neither transformers nor a smaller model is handed a key whose
meaning nobody checked; what it names must lie in its range. Fields that a config leaves to its
class are written out, because a smaller model may go under another class, whose defaults differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.model.allowed import Allowed
from bipline.model.families import Family, family_in, family_of
from bipline.model.per_layer.stored import KEY, listed_widths
from bipline.model.rope import partial_rotary_factor
from bipline.model.shapes import PER_LAYER_PREFIX, is_per_layer, shape_of
from bipline.values.origin import SECTION

ROPE_KEYS = ("rope_parameters", "rope_scaling")
SHOWN = 60
NAMED = 12


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _RopeType(_Table):
    needs: tuple[str, ...]
    takes: tuple[str, ...]


class _Keys(_Table):
    schema_version: int
    common: dict[str, Allowed]
    per_layer: dict[str, Allowed]
    defaults: dict[str, Any]
    refused: dict[str, str]
    rope_keys: dict[str, Allowed]
    rope_types: dict[str, _RopeType]


@cache
def _table() -> _Keys:
    path = Path(__file__).with_name("config_keys.json")
    return _Keys.model_validate_json(path.read_text(encoding="utf-8"))


def allowed_keys(model_type: str) -> dict[str, Allowed]:
    """What a config of this ``model_type`` may say. Raises InvalidInput for an unknown one."""
    table, family = _table(), family_of(model_type)
    flags = dict.fromkeys(family.bias_flags, Allowed(kind="flag"))
    own = table.per_layer if model_type.startswith(PER_LAYER_PREFIX) else {}
    common = {key: v for key, v in table.common.items() if key not in family.lacks_keys}
    common[family.activation] = table.common["hidden_act"]
    for key in family.never_null:
        common[key] = common[key].model_copy(update={"null": False})
    return {**common, **flags, **family.keys, **own}


def class_defaults(model_type: str) -> dict[str, Any]:
    """What the class of this ``model_type`` takes where a config says nothing."""
    family = family_of(model_type)
    shared = {key: v for key, v in _table().defaults.items() if key not in family.lacks_keys}
    return {**shared, **family.defaults}


def checked_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config with known keys alone, and with what it leaves to its class written out.

    Keys that are not known are listed in one note. Raises InvalidInput, with the key, its value
    and what is allowed, for a known key outside its range.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidInput(f"{where}: model_type is {shown(model_type)}, not a text")
    allowed, family = allowed_keys(model_type), family_of(model_type)
    config = _in_common_words(config, family, where)
    blocks = config.get(KEY) if is_per_layer(config) else None
    if blocks is not None:
        config = {key: value for key, value in config.items() if key != KEY}
    _refuse_named(config, where)
    _tell_unknown(where, tuple(sorted(set(config) - set(allowed) - {SECTION})))
    known = {key: value for key, value in config.items() if key in allowed}
    for key, value in known.items():
        _check(family.spelled.get(key, key), value, allowed[key], where)
    checked = {**class_defaults(model_type), **known}
    if blocks is not None:
        for key, value in listed_widths(blocks, checked, where).items():
            _check(key, value, allowed[key], where)
            checked[key] = value
    for key in ROPE_KEYS:
        if checked.get(key):
            checked[key] = _checked_ropes(key, checked[key], f"{where}: {key}", family)
    family = family_in(checked)
    _refuse_unequal(checked, family, where)
    checked |= family.set_keys
    if family.ffn_times and checked.get("intermediate_size") is None and "hidden_size" in checked:
        checked["intermediate_size"] = family.ffn_times * checked["hidden_size"]
    _check_together(checked, where)
    checked |= _written_out(checked, family, where)
    return _read_as(checked, family, where) if family.read_as else checked


def check_around(config: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Tell the keys of a config around a decoder's that are not known, which are left out.

    Raises InvalidInput for those that no model may have.
    """
    _refuse_named({key: value for key, value in config.items() if key not in known}, where)
    _tell_unknown(where, tuple(sorted(set(config) - set(known) - {SECTION})))


def _in_common_words(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """The config under the names that keys have in every family's.

    Raises InvalidInput for a key by such a name where the family's class calls it otherwise, and
    for two names of one key that say something else each.
    """
    for key, own in family.spelled.items():
        if key in config and key not in family.either:
            raise InvalidInput(
                f"{where}: {key} {shown(config[key])} is called {own} by a {config['model_type']}; "
                "name it so"
            )
    common: dict[str, Any] = {}
    for key, value in config.items():
        if common.setdefault(name := family.words.get(key, key), value) != value:
            raise InvalidInput(
                f"{where}: {key} is {shown(value)}, and by another name {shown(common[name])}; "
                "remove one of them"
            )
    return common


def _refuse_unequal(config: dict[str, Any], family: Family, where: str) -> None:
    """Leave out keys that must say what others do. Raises InvalidInput for one that does not."""
    for key, other in family.equal_keys.items():
        if (value := config.pop(key, None)) not in (None, config.get(other)):
            raise InvalidInput(
                f"{where}: {key} is {shown(value)}, not {other} {config.get(other)}, which is not "
                "supported"
            )


def _read_as(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """The config of the class that computes what the model's own, which transformers lacks, does.

    Raises InvalidInput for a class of the same model_type that computes something else.
    """
    named = config.get("architectures") or ["nothing"]
    if family.architecture not in named:
        why = family.other_classes.get(named[0], f"not {family.architecture}")
        raise InvalidInput(f"{where}: architectures is {shown(named[0])}, {why}")
    architectures = [family_of(family.read_as).architecture]
    own = {"model_type": family.read_as, "architectures": architectures}
    return {**class_defaults(family.read_as), **config, **own}


def _written_out(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """What its class makes of keys that depend on others, or mean something else than they say.

    Raises InvalidInput where the class refuses the values.
    """
    if not family.written_out:
        return {}
    from bipline.model.built import transformers_config

    try:
        made = transformers_config(config)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    return {key: getattr(made, key) for key in family.written_out}


def _refuse_named(config: Mapping[str, Any], where: str) -> None:
    for key, why in _table().refused.items():
        if config.get(key) is not None:
            raise InvalidInput(f"{where}: {key} {shown(config[key])} {why}")


@cache
def _tell_unknown(where: str, keys: tuple[str, ...]) -> None:
    """Once for a file, however often it is opened."""
    keys = tuple(key for key in keys if key not in _table().refused)
    if keys:
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        named = ", ".join(shown(key) for key in keys[:NAMED])
        note(f"{where}: left out, because no such key is known: {named}{more}")


def _check(key: str, value: Any, allowed: Allowed, where: str) -> None:
    if not allowed.holds(value):
        raise InvalidInput(f"{where}: {key} is {shown(value)}, not {allowed}")


def shown(value: Any) -> str:
    """A value from a file as a message may name it: short, in one line, without a control."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _checked_ropes(key: str, rope: Mapping[str, Any], where: str, family: Family) -> dict[str, Any]:
    """How positions turn, or how they do in each kind of block where the family says so."""
    if not (key == "rope_parameters" and family.rope_by_layer_type):
        return _checked_rope(rope, where, family)
    kinds = family.keys["layer_types"].choices
    if odd := [name for name, each in rope.items() if name not in kinds or not each]:
        raise InvalidInput(
            f"{where}: {shown(odd[0])} does not say how positions turn in one kind of block; "
            f"kinds: {', '.join(kinds)}"
        )
    return {name: _checked_rope(each, f"{where}.{name}", family) for name, each in rope.items()}


def _checked_rope(rope: Mapping[str, Any], where: str, family: Family) -> dict[str, Any]:
    """How positions turn: of a type that is known, with what it needs and nothing else."""
    table = _table()
    name = rope.get("rope_type", rope.get("type", "default"))
    kind = table.rope_types.get(name) if isinstance(name, str) else None
    if kind is None:
        known = ", ".join(table.rope_types)
        raise InvalidInput(f"{where}: rope_type is {shown(name)}, not one of {known}")
    for key in kind.needs:
        if key not in rope:
            raise InvalidInput(f"{where}: rope_type {name} needs {key}")
    for key, value in rope.items():
        if isinstance(value, dict):
            raise InvalidInput(
                f"{where}: {key} {shown(value)} is for some blocks alone, which is not supported"
            )
    takes = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *kind.needs, *kind.takes}
    takes |= set(family.rope_takes.get(name, ()))
    _tell_unknown(where, tuple(sorted(set(rope) - takes)))
    known_rope = {key: value for key, value in rope.items() if key in takes}
    for key, value in known_rope.items():
        _check(key, value, family.keys.get(key, table.rope_keys[key]), where)
    return known_rope


def _check_together(config: Mapping[str, Any], where: str) -> None:
    """What single keys cannot say: sizes that must fit each other."""
    shape, family = shape_of(config), family_in(config)
    if shape.head_dim % 2 and family.turns_heads:
        raise InvalidInput(
            f"{where}: head_dim is {shape.head_dim}, not even, and positions turn pairs"
        )
    turned = int(shape.head_dim * partial_rotary_factor(config))
    divided = shape.hidden_size % shape.num_attention_heads == 0
    if family.heads_must_divide_hidden_size and not (divided or is_per_layer(config)):
        raise InvalidInput(
            f"{where}: hidden_size {shape.hidden_size} is not a multiple of num_attention_heads "
            f"{shape.num_attention_heads}, as a {config['model_type']} has it"
        )
    padding = config.get("pad_token_id")
    if padding is not None and padding >= shape.vocab_size:
        raise InvalidInput(
            f"{where}: pad_token_id is {padding}, above the vocabulary of {shape.vocab_size}"
        )
    mixed = config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) > 1
    if shape.num_experts and mixed:
        raise InvalidInput(
            f"{where}: mlp_only_layers {shown(config.get('mlp_only_layers'))} and "
            f"decoder_sparse_step {config.get('decoder_sparse_step')} leave blocks without experts "
            "beside blocks with some, which is not supported"
        )
    _check_lists(config, shape.num_hidden_layers, turned // 2, where)


def _check_lists(config: Mapping[str, Any], layers: int, pairs: int, where: str) -> None:
    for key in family_in(config).block_lists:
        if config.get(key) is not None and len(config[key]) != layers:
            raise InvalidInput(f"{where}: {key} has not one entry for each of {layers} blocks")
    for key in ROPE_KEYS:
        found = config.get(key) or {}
        inside = {f"{kind}.{n}": v for kind, each in found.items()
                  if isinstance(each, dict) for n, v in each.items()}  # fmt: skip
        for name, factors in {**found, **inside}.items():
            if isinstance(factors, list) and len(factors) != pairs:
                raise InvalidInput(f"{where}: {key}.{name} has not one factor for each of {pairs}")
