"""The one reader of JSON that lies on disk or came from elsewhere.

Python's own reader takes the last of two equal keys, NaN, and any depth and size. Here each of
them is a refusal that names the file, in one line, and says what to do with it.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from bipline.base.errors import InvalidInput

LARGEST_BYTES = 256 << 20
DELETE = "delete it and run again"
NOT_JSON = "not JSON: "
# The escape of one half of a surrogate pair.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, name: str, remedy: str = DELETE) -> dict[str, Any]:
    """The JSON object in a file of ours; ``name`` is what messages call it, such as "journal".

    Raises InvalidInput where it is missing, too large, or not one JSON object.
    """
    if path.is_fifo():  # which may never have a writer
        raise InvalidInput(f"{path}: the {name} cannot be read: Is a pipe")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such {name} file") from None
    except OSError as error:
        raise InvalidInput(f"{path}: the {name} cannot be read: {error.strerror}") from None
    return parse_object(content, str(path), name, remedy)


def written_text(path: Path) -> str:
    """The text of a file that may be one of ours; empty for one that cannot be: too large, no text.

    Whether a file may be written over is asked of it, so nothing is raised.
    """
    try:
        return "" if path.stat().st_size > LARGEST_BYTES else path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def parse_object(content: bytes, where: str, name: str, remedy: str = DELETE) -> dict[str, Any]:
    """The JSON object in ``content``, which came from ``where``.

    Raises InvalidInput for anything else, and for keys that stand twice, NaN and infinities.
    """
    try:
        value = parse(content)
    except ValueError as error:
        raise InvalidInput(f"{where}: not a {name}: {error}{_then(remedy)}") from None
    if not isinstance(value, dict):
        found = type(value).__name__
        raise InvalidInput(f"{where}: not a {name}: a {found}, not a JSON object{_then(remedy)}")
    return value


def parse_json(content: bytes, where: str) -> Any:
    """Any JSON value in ``content``, a user's file at ``where``. Raises InvalidInput naming it."""
    try:
        return parse(content)
    except ValueError as error:
        reason = str(error).removeprefix(NOT_JSON)
        raise InvalidInput(f"{where}: {NOT_JSON}{reason}") from None


def parse(content: bytes) -> Any:
    """Any JSON value. Raises ValueError, with the reason in one line, for what is none."""
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"larger than {LARGEST_BYTES >> 20} MB")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 text: {error.reason} at byte {error.start}") from None
    try:
        value = json.loads(
            text, object_pairs_hook=distinct, parse_constant=_refuse_constant, parse_float=_finite
        )
        halved = holds_half_a_pair(value) if SURROGATE.search(text) else False
    except RecursionError:
        raise ValueError("nested too deeply (the limit of recursion)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{NOT_JSON}{error}") from None
    if halved:
        raise ValueError("a text in it holds half of a surrogate pair")
    return value


def holds_half_a_pair(value: Any) -> bool:
    """Whether a text of a JSON value holds half a surrogate pair, which is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs. Raises ValueError for a key that stands twice."""
    value: dict[str, Any] = {}
    for name, each in pairs:
        if name in value:
            raise ValueError(f"the key {name[:30]!r} stands twice")
        value[name] = each
    return value


def _finite(text: str) -> float:
    if isfinite(value := float(text)):
        return value
    raise ValueError(f"{text} is no number")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _then(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""
