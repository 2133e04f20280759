"""What a configuration leaves to the model that it is for: ``{name}`` and the like in a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from bipline.base.errors import InvalidInput

PART = re.compile(r"\{(\w+)\}")
# What a model may be called where its name becomes part of a value.
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def filled(value: str, parts: Mapping[str, str]) -> str:
    """A value with the model's parts in it; other braces are YAML's."""
    return PART.sub(lambda found: parts.get(found[1], found[0]), value)


def check_plain(name: str) -> None:
    """Raise InvalidInput for a name that is not only a name where a value is read as YAML."""
    if not PLAIN.fullmatch(name) or not isinstance(yaml.safe_load(name), str):
        raise InvalidInput(
            f"{name!a:.60}: cannot stand for {{name}} in a value; rename the model to letters, "
            "digits and . _ -, or leave {name} out"
        )


def model_name(source: str) -> str:
    """What a model is called: the last part of its address, without revision, alias or version."""
    text = source.rstrip("/")
    if text.startswith("models:/"):
        return text.removeprefix("models:/").partition("@")[0].partition("/")[0]
    if text.startswith("hf:"):
        return text.partition("@")[0].rpartition("/")[2].removeprefix("hf:")
    return text.rpartition("/")[2] if "://" in text else Path(text).absolute().name
