"""What a config.json may say: a list of keys with their types and ranges, family by family.

``config_keys.json`` is the list. What it does not name is left out, so that neither transformers
nor a smaller model is handed a key whose meaning nobody checked; what it names must lie in its
range. Fields that a config leaves to its class are written out, because a smaller model may go
under another class, whose defaults differ.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.model.families import family_of
from bipline.model.shapes import PER_LAYER_PREFIX, is_per_layer, shape_of

# transformers looks a tokenizer up by this name, so it must be one: no Auto class, no model.
TOKENIZER = re.compile(r"(?!Auto)[A-Za-z][A-Za-z0-9]{0,60}Tokenizer(Fast)?|TokenizersBackend")
LONGEST_TEXT = 4096
SHOWN = 60
NAMED = 12


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Allowed(_Table):
    """What one key may hold: a value of its kind, a list of them where it ``lists``, or null."""

    kind: Literal["whole", "number", "flag", "text", "choice", "tokenizer", "rope", "code"]
    least: float = 0
    most: float = 0
    choices: tuple[str, ...] = ()
    lists: Literal["", "also", "only"] = ""
    null: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value from JSON is allowed; what a rope or code says is asked elsewhere."""
        if value is None:
            return self.null
        if self.lists and isinstance(value, list):
            return all(self._one(each) for each in value)
        return self.lists != "only" and self._one(value)

    def _one(self, value: Any) -> bool:
        if self.kind in ("whole", "number"):
            kinds = (int,) if self.kind == "whole" else (int, float)
            # A bool is an int to Python, and not to whoever wrote the file.
            return type(value) in kinds and self.least <= value <= self.most
        if self.kind in ("flag", "rope", "code"):
            return isinstance(value, bool if self.kind == "flag" else dict)
        if self.kind == "tokenizer":
            return isinstance(value, str) and bool(TOKENIZER.fullmatch(value))
        texts = isinstance(value, str) and len(value) <= LONGEST_TEXT
        return texts and (self.kind == "text" or value in self.choices)

    def __str__(self) -> str:
        """What is allowed, as a refusal names it."""
        one = {
            "whole": f"a whole number from {self.least:.15g} to {self.most:.15g}",
            "number": f"a number from {self.least:.15g} to {self.most:.15g}",
            "flag": "true or false",
            "text": "a text",
            "choice": f"one of {', '.join(self.choices)}",
            "tokenizer": "the name of a tokenizer class",
            "rope": "an object with a rope_type",
            "code": "an object",
        }[self.kind]
        several = f"a list, each {one}"
        named = {"": one, "also": f"{one}, or {several}", "only": several}[self.lists]
        return f"{named}, or null" if self.null else named


class _RopeType(_Table):
    needs: tuple[str, ...]
    takes: tuple[str, ...]


class _Keys(_Table):
    schema_version: int
    common: dict[str, Allowed]
    families: dict[str, dict[str, Allowed]]
    per_layer: dict[str, Allowed]
    defaults: dict[str, dict[str, Any]]
    shared_defaults: dict[str, Any]
    refused: dict[str, str]
    rope_keys: dict[str, Allowed]
    rope_types: dict[str, _RopeType]


@cache
def _table() -> _Keys:
    path = Path(__file__).with_name("config_keys.json")
    return _Keys.model_validate_json(path.read_text(encoding="utf-8"))


def parse_json(content: bytes, where: str) -> Any:
    """Strict JSON: no key twice, no NaN or infinity, no half of a surrogate pair.

    Raises InvalidInput, naming ``where``, for anything else.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_number, parse_float=_number
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON: {_first_line(error)}") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice")
    return value


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no number")
    return value


def _first_line(error: BaseException) -> str:
    if isinstance(error, UnicodeError):
        return "holds what is no UTF-8 text, or half of a surrogate pair"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def allowed_keys(model_type: str) -> dict[str, Allowed]:
    """What a config of this ``model_type`` may say. Raises InvalidInput for an unknown one."""
    family_of(model_type)
    table, base = _table(), model_type.removeprefix(PER_LAYER_PREFIX)
    own = table.per_layer if base != model_type else {}
    return {**table.common, **table.families[base], **own}


def class_defaults(model_type: str) -> dict[str, Any]:
    """What the class of this ``model_type`` takes where a config says nothing."""
    table = _table()
    return {**table.shared_defaults, **table.defaults[model_type.removeprefix(PER_LAYER_PREFIX)]}


def checked_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config with known keys alone, and with what it leaves to its class written out.

    Keys that are not known are listed in one note. Raises InvalidInput, with the key, its value
    and what is allowed, for a known key outside its range.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidInput(f"{where}: model_type is {shown(model_type)}, not a text")
    allowed = allowed_keys(model_type)
    _refuse_named(config, where)
    _tell_unknown(where, tuple(sorted(set(config) - set(allowed))))
    known = {key: value for key, value in config.items() if key in allowed}
    for key, value in known.items():
        _check(key, value, allowed[key], where)
    checked = {**class_defaults(model_type), **known}
    for key in ("rope_parameters", "rope_scaling"):
        if checked.get(key):
            checked[key] = _checked_rope(checked[key], f"{where}: {key}")
    _check_together(checked, where)
    return checked


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


def _checked_rope(rope: Mapping[str, Any], where: str) -> dict[str, Any]:
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
    takes = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *kind.needs, *kind.takes}
    _tell_unknown(where, tuple(sorted(set(rope) - takes)))
    known_rope = {key: value for key, value in rope.items() if key in takes}
    for key, value in known_rope.items():
        _check(key, value, table.rope_keys[key], where)
    return known_rope


def _check_together(config: Mapping[str, Any], where: str) -> None:
    """What single keys cannot say: sizes that must fit each other."""
    shape = shape_of(config)
    if shape.head_dim % 2:
        raise InvalidInput(
            f"{where}: head_dim is {shape.head_dim}, not even, and positions turn pairs"
        )
    family = family_of(str(config["model_type"]))
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
    _check_lists(config, shape.num_hidden_layers, shape.head_dim // 2, where)


def _check_lists(config: Mapping[str, Any], layers: int, pairs: int, where: str) -> None:
    types = config.get("layer_types")
    if types is not None and len(types) != layers:
        raise InvalidInput(f"{where}: layer_types has not one entry for each of {layers} blocks")
    for key in ("rope_parameters", "rope_scaling"):
        for name, factors in (config.get(key) or {}).items():
            if isinstance(factors, list) and len(factors) != pairs:
                raise InvalidInput(f"{where}: {key}.{name} has not one factor for each of {pairs}")
