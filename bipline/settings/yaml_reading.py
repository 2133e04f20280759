"""YAML as a configuration may be written: what two readers would read differently is refused.

YAML 1.1 reads ``010`` as 8, ``1:30`` as 90, ``1_000`` as 1000, ``on`` as true and ``2026-01-02`` as
a date, and of a key that stands twice it takes the last. A configuration says what a run does and
is kept as its record, so each of these is one line here, with its place. Only plain mappings,
lists, texts, decimal numbers, true, false and null are left.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from bipline.base.errors import InvalidInput

LARGEST_TEXT = 1 << 20
LARGEST_TREE = 100_000
LONGEST_NUMBER = 300
TAG = "tag:yaml.org,2002:"
KEYS = {TAG + "str", TAG + "merge"}
_PLAIN_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+")
_WORDS = {"true": True, "True": True, "false": False, "False": False}


class _Reader(yaml.SafeLoader):
    """PyYAML's safe loader, with the constructors below in place of its own."""


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises InvalidInput with the line of what cannot be meant."""
    if len(text) > LARGEST_TEXT:
        raise InvalidInput(f"{len(text):,} characters; at most {LARGEST_TEXT:,} are read")
    try:
        reader = _Reader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _checked_size(node, {})
        return reader.construct_document(node)
    except yaml.YAMLError as error:
        raise InvalidInput(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InvalidInput("not a configuration: it is nested too deeply") from None


def _checked_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node with every alias written out; an alias of an alias multiplies them.

    Keys are looked at here, before what ``<<`` brings in is put beside them.
    """
    if id(node) in known:
        if known[id(node)] == 0:
            raise _refusal(node, "an alias that holds itself")
        return known[id(node)]
    known[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
    total = 1 + sum(_checked_size(each, known) for each in _parts(node))
    if total > LARGEST_TREE:
        raise _refusal(node, f"more than {LARGEST_TREE:,} values, aliases written out")
    known[id(node)] = total
    return total


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not (isinstance(key, yaml.ScalarNode) and key.tag in KEYS):
            told = repr(key.value) if isinstance(key, yaml.ScalarNode) else "of several values"
            raise _refusal(key, f"the key {told} is no text; put it in quotes")
        if key.value in seen:
            raise _refusal(key, f"the key {key.value!r} stands twice")
        seen.add(key.value)


def _refusal(node: yaml.Node, what: str) -> InvalidInput:
    return InvalidInput(f"line {node.start_mark.line + 1}: {what}")


def _mapping(reader: _Reader, node: yaml.MappingNode) -> dict[str, Any]:
    reader.flatten_mapping(node)
    return {_sound(key): reader.construct_object(value, deep=True) for key, value in node.value}


def _sequence(reader: _Reader, node: yaml.SequenceNode) -> list[Any]:
    return [reader.construct_object(each, deep=True) for each in node.value]


def _number(reader: _Reader, node: yaml.ScalarNode) -> int | float:
    text = node.value
    if not _PLAIN_NUMBER.fullmatch(text):
        raise _refusal(node, f"{text!r} has two readings: write a decimal number, or quote a text")
    if len(text) > LONGEST_NUMBER:
        raise _refusal(node, f"a number of {len(text):,} digits")
    number = int(text) if text.lstrip("+-").isdigit() else float(text)
    if isinstance(number, float) and not math.isfinite(number):
        raise _refusal(node, f"{text!r} is no finite number")
    return number


def _boolean(reader: _Reader, node: yaml.ScalarNode) -> bool:
    if node.value not in _WORDS:
        raise _refusal(node, f"{node.value!r} has two readings: write true or false, or quote it")
    return _WORDS[node.value]


def _text(reader: _Reader, node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    # 1e5 is a text to YAML 1.1 and a number to others, and meant as one; !!str 5 is not.
    resolved = reader.resolve(yaml.ScalarNode, text, (True, False))
    if node.style is None and resolved == TAG + "str" and _PLAIN_NUMBER.fullmatch(text):
        return _number(reader, node)
    return _sound(node)


def _sound(node: yaml.ScalarNode) -> str:
    text = str(node.value)
    if re.search("[\0\ud800-\udfff]", text):
        raise _refusal(node, f"{text!a} holds characters that no name or path can have")
    return text


def _unknown(reader: _Reader, node: yaml.Node) -> Any:
    raise _refusal(node, f"the tag {node.tag!r}: only plain values are read")


_Reader.yaml_constructors = {}
_CONSTRUCTORS: dict[str, Any] = {
    "map": _mapping,
    "seq": _sequence,
    "str": _text,
    "int": _number,
    "float": _number,
    "bool": _boolean,
    "null": lambda reader, node: None,
    # A date is what its letters say.
    "timestamp": _text,
    "value": _text,
}
for _name, _constructor in _CONSTRUCTORS.items():
    _Reader.add_constructor(TAG + _name, _constructor)
_Reader.add_constructor(None, _unknown)
