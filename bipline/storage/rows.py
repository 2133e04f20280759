"""Rows of a file in UTF-8: JSON Lines, JSON and CSV, each with the line where it stands.

What another program would read otherwise is no row: keys that stand twice, half a surrogate
pair, numbers of thousands of digits, brackets nested beyond what Python follows.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.machine import free_memory
from bipline.storage.strict_json import SURROGATE, distinct, holds_half_a_pair

# Longer than any number that a row has use for; Python itself gives up at 4,300 digits.
MOST_DIGITS = 400
OTHER_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# The bytes, the text they are, and the text with its lines ended alike.
MEMORY_A_BYTE = 3
SPACE = re.compile(r"[ \t\n]*")
Row = tuple[int, Any]


def read_text(path: Path, what: str) -> str:
    """A file's text without a byte order mark, lines ended by ``\\n``.

    Raises InvalidInput where there is no such file (``what`` names it), or it is not UTF-8 text.
    """
    if path.is_dir():
        raise InvalidInput(f"{path}: a {what} is a file, this is a directory")
    if not path.is_file():
        there = f"is a pipe or a device; save the {what} first"
        raise InvalidInput(f"{path}: {there if path.exists() else f'no such {what}'}")
    if (size := path.stat().st_size) * MEMORY_A_BYTE > free_memory():
        raise InvalidInput(f"{path}: {size / 1e9:.1f} GB, which free memory does not hold")
    data = path.read_bytes()
    if data.startswith(OTHER_MARKS):
        raise InvalidInput(f"{path}: is UTF-16 or UTF-32; save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text: {error.reason} at byte {error.start}"
        raise InvalidInput(f"{path}: {reason}; save it as UTF-8") from None
    if "\0" in text:
        raise InvalidInput(f"{path}: holds a zero byte (byte {data.index(0)}), so it is no text")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def json_lines(path: Path, text: str) -> Iterator[Row]:
    """The values of JSON Lines; blank lines are none.

    Raises InvalidInput with the line that is not JSON.
    """
    # Not splitlines: a string may hold U+2028, which that would take for a line's end.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise refusal(path, number, str(error)) from None


def json_values(path: Path, text: str) -> Iterator[Row]:
    """The elements of a JSON array, or of JSON values that follow each other.

    Raises InvalidInput with the line of what is not JSON.
    """
    line, end = 1, 0
    try:
        position = _skip(text, 0)
        closing = "]" if text[position : position + 1] == "[" else ""
        position = _skip(text, position + len(closing))
        while text[position : position + 1] not in {closing, ""}:
            line, end = line + text.count("\n", end, position), position
            value, position = _decoded(text, position)
            yield line, value
            position = _skip(text, position)
            if closing and text[position : position + 1] == ",":
                position = _skip(text, position + 1)
            elif closing and text[position : position + 1] != closing:
                raise ValueError("is not followed by a comma or by the list's end")
        if text[position : position + 1] != closing or text[position + 1 :].strip():
            raise ValueError("begins a list that does not end, or ends before the file does")
    except ValueError as error:
        raise refusal(path, line, str(error)) from None


def csv_rows(path: Path, text: str) -> Iterator[Row]:
    """The rows of a table with commas, each as an object of the first line's names.

    Raises InvalidInput with the line of a row that has other columns than the first.
    """
    before = csv.field_size_limit(max(len(text), 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise refusal(path, reader.line_num, f"is no row of a table: {error}") from None
    finally:
        csv.field_size_limit(before)
    names = lines[0][1] if lines else []
    if len(set(names)) < len(names):
        raise refusal(path, 1, "names a column twice")
    for number, cells in lines[1:]:
        if len(cells) != len(names):
            raise refusal(path, number, f"has {len(cells)} columns, the first line {len(names)}")
        yield number, dict(zip(names, cells, strict=True))


def parse_json(text: str) -> Any:
    """One JSON value. Raises ValueError that says, of the text, what is wrong with it."""
    value, end = _decoded(text, len(text) - len(text.lstrip()))
    if text[end:].strip():
        raise ValueError(f"is not JSON: more follows after column {end}")
    return value


def refusal(path: Path, line: int, reason: str) -> InvalidInput:
    """What is wrong with a line of a file."""
    return InvalidInput(f"{path}: line {line} {reason}")


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    words = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    other = "null" if value is None else type(value).__name__
    return {**words, dict: "an object", str: "a string"}.get(type(value), other)


def names_of(row: dict[str, Any]) -> str:
    """The first keys of an object, as a message can hold them."""
    shown = [repr(name[:30]) for name in list(row)[:6]]
    return ", ".join([*shown, "..."] if len(row) > 6 else shown) or "none"


def _skip(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    return found.end() if found else position


def _decoded(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        column = error.pos - text.rfind("\n", 0, error.pos)
        raise ValueError(f"is not JSON: {error.msg} at column {column}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if SURROGATE.search(text, start, end) and holds_half_a_pair(value):
        raise ValueError("holds half a surrogate pair, which is no character")
    return value, end


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"holds a number of {len(digits)} digits")
    return int(digits)


DECODER = json.JSONDecoder(object_pairs_hook=distinct, parse_int=_whole)
