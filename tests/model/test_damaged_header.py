"""Damaged safetensors files, drawn: what the library refuses is refused, never read otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tests.model.safetensors_library import FLOAT, as_file, compare

SMALL = save({"a": torch.ones(2, 3), "b": torch.zeros(0, 4), "c": torch.ones(5).bool()}, {"m": "n"})
HEADER_END = 8 + int.from_bytes(SMALL[:8], "little")
HEADER, DATA = SMALL[8:HEADER_END].decode(), SMALL[HEADER_END:]
JSON_TOKENS = re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\[\]{}:,"\s]+', HEADER)
ODD_TOKENS = [
    "-0", "0", "1", "-1", "5", "24", "1.0", "1e0", "1E400", "007", str(2**63), str(2**64),
    "9" * 5000, "null", "true", "NaN", "Infinity", '""', '"a"', '"F32"', '"F4"', '"F16"', '"\\n"',
    '"\\ud800"', '"\\ud83d\\ude00"', '"__metadata__"', '"dtype"', '"x":1,', "[]", "{}", "[0,24]",
    "[", "]", "{", "}", ",", ":", " ", "\t", "\x00", "\x1f", "\ufeff", "0,", ",0",
]  # fmt: skip

Change = Callable[[list[Any], int, Any], None]


def replace(content: list[Any], place: int, new: Any) -> None:
    content[place] = new


def insert(content: list[Any], place: int, new: Any) -> None:
    content.insert(place, new)


def remove(content: list[Any], place: int, _new: Any) -> None:
    del content[place]


def cut(content: list[Any], place: int, _new: Any) -> None:
    del content[place:]


def repeat(content: list[Any], place: int, _new: Any) -> None:
    """A part of the text stands twice: a name, a field, a whole tensor."""
    content[place:place] = content[place : place + 17]


def damaged(content: list[Any], new: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """The content after one or two changes, each somewhere in it."""
    change = st.tuples(
        st.sampled_from([replace, insert, remove, cut, repeat]),
        st.integers(0, len(content) - 1),
        new,
    )

    def apply(changes: list[tuple[Change, int, Any]]) -> list[Any]:
        changed = list(content)
        for act, place, added in changes:
            act(changed, min(place, max(0, len(changed) - 1)), added) if changed else None
        return changed

    return st.lists(change, min_size=1, max_size=2).map(apply)


@settings(deadline=None, max_examples=300)
@given(content=damaged(list(SMALL), st.integers(0, 255)))
def test_damaged_bytes(path: Path, content: list[int]) -> None:
    """Flipped, added, lost and cut off anywhere: in the length, the header and the tensors."""
    compare(path, bytes(content))


@settings(deadline=None, max_examples=300)
@given(header=damaged(list(HEADER.encode()), st.integers(0, 255)), extra=st.integers(-1, 1))
def test_damaged_header_of_the_right_length(path: Path, header: list[int], extra: int) -> None:
    """As above, but the damage is found in the header and not in a length that is wrong."""
    compare(path, as_file(bytes(header), DATA + b"x" if extra > 0 else DATA[: len(DATA) + extra]))


@settings(deadline=None, max_examples=400)
@given(tokens=damaged(JSON_TOKENS, st.sampled_from(ODD_TOKENS)))
def test_header_of_other_tokens(path: Path, tokens: list[str]) -> None:
    """Damage that is JSON still: other sizes, types, names and nesting."""
    compare(path, as_file("".join(tokens), DATA))


ODD_NUMBERS = ["-0", "0", "1", "-1", "4", "1.0", "1e0", "007", str(2**63), str(2**64), "true"]
ODD_VALUES = [
    "null", "true", "1", '""', '"F32"', '"F4"', '"F64"', '"x"', '"\\ud800"', '"\\n"', "NaN",
    "[]", "{}", '{"x":1}', '{"x":"y"}', '{"x":"\\udc00"}', '{"x":{}}', "[[]]",
    *(f"[{number}]" for number in ODD_NUMBERS),
    *(f"[0,{number}]" for number in ODD_NUMBERS),
    *(f"[{number},4]" for number in ODD_NUMBERS),
    f"[{2**63},2,0]", "[0,4,4]", "[" * 200 + "]" * 200,
]  # fmt: skip


@st.composite
def headers_with_odd_values(draw: st.DrawFn) -> bytes:
    """Metadata and one tensor, full or empty, where one or two of the values are others."""
    data = draw(st.sampled_from([b"", FLOAT]))
    count, size = len(data) // 4, len(data)
    values = {
        "name": '"a"',
        "metadata": '{"x":"y"}',
        "dtype": '"F32"',
        "shape": f"[{count}]",
        "data_offsets": f"[0,{size}]",
        "more": '"x"',
    }
    odd = st.dictionaries(
        st.sampled_from(list(values)), st.sampled_from(ODD_VALUES), min_size=1, max_size=2
    )
    values |= draw(odd)
    more = f',"more":{values["more"]}' if draw(st.booleans()) else ""
    fields = ",".join(f'"{name}":{values[name]}' for name in ("dtype", "shape", "data_offsets"))
    header = f'{{"__metadata__":{values["metadata"]},{values["name"]}:{{{fields}{more}}}}}'
    return as_file(header, data)


@settings(deadline=None, max_examples=400)
@given(content=headers_with_odd_values())
def test_header_of_other_values(path: Path, content: bytes) -> None:
    """A header that is JSON and has the right fields, of which one or two hold nonsense."""
    compare(path, content)


@settings(deadline=None, max_examples=300)
@given(
    spans=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4),
    sizes=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    data=st.integers(0, 8),
)
@example(spans=[(0, 2), (2, 4)], sizes=[2, 2, 0, 0], data=4)
@example(spans=[(0, 3), (2, 5)], sizes=[3, 3, 0, 0], data=5)
@example(spans=[(0, 2), (3, 5)], sizes=[2, 2, 0, 0], data=5)
@example(spans=[(2, 4), (0, 2), (2, 2)], sizes=[2, 2, 0, 0], data=4)
@example(spans=[(0, 2), (1, 1)], sizes=[2, 0, 0, 0], data=2)
def test_tensors_that_overlap_or_leave_holes(
    path: Path, spans: list[tuple[int, int]], sizes: list[int], data: int
) -> None:
    header = {
        str(number): {"dtype": "U8", "shape": [size], "data_offsets": list(span)}
        for number, (span, size) in enumerate(zip(spans, sizes, strict=False))
    }
    compare(path, as_file(json.dumps(header), bytes(data)))
