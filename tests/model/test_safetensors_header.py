"""Our reading of a safetensors header against the library's own: no more is accepted than there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.torch import save

from bipline.base.errors import InvalidInput
from bipline.model import safetensors_header
from bipline.model.safetensors_header import DTYPE_BITS, LONGEST_HEADER, read_header
from bipline.storage.folder import LocalFile

TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16,
    torch.int32, torch.uint32, torch.float32, torch.int64, torch.uint64, torch.float64,
    torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
# Where we refuse what the library takes, and why nobody who writes such files is known.
STRICTER = {
    "a name stands twice": "the library takes the last one: two readers may see two models",
    "has not exactly the fields": "unknown fields are dropped, and lists taken for objects, there",
    "holds the negative number": "it stands in a field that is dropped there",
    "a shape that no file can hold": "a zero size before sizes beyond 64 bits hides them there",
}

Held = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("header") / "model.safetensors"


def as_file(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header; ``length`` is what it claims, if that is not the truth."""
    text = header.encode() if isinstance(header, str) else header
    claimed = len(text) if length is None else length
    return claimed.to_bytes(8, "little") + text + data


def put(path: Path, content: bytes) -> None:
    """Write a new file: over an older one, some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def taken_by_the_library(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except Exception:
        return False


def as_the_library_reads(content: bytes) -> Held:
    return {
        name: (held["dtype"], tuple(held["shape"]), bytes(held["data"]))
        for name, held in deserialize(content)
    }


def as_we_read(path: Path) -> Held:
    content = path.read_bytes()
    return {
        name: (held.dtype, held.shape, content[held.offset : held.offset + held.num_bytes])
        for name, held in read_header(LocalFile(path), str(path)).items()
    }


def refusal_of(path: Path) -> str:
    """Why we refuse a file, or nothing; whatever else is raised fails the test."""
    try:
        read_header(LocalFile(path), str(path))
    except InvalidInput as error:
        message = str(error)
        assert message.isprintable(), "one line that does nothing to a terminal"
        assert message.startswith(f"{path}: not a whole safetensors file: ")
        return message
    return ""


def compare(path: Path, content: bytes) -> None:
    """Nothing that the library refuses is taken, and what is taken is read as it reads it."""
    put(path, content)
    refusal, taken = refusal_of(path), taken_by_the_library(path)
    if not refusal:
        assert taken, content
        assert as_we_read(path) == as_the_library_reads(content)
    elif taken:
        assert any(reason in refusal for reason in STRICTER), refusal


def tensors() -> st.SearchStrategy[dict[str, torch.Tensor]]:
    """Tensors of any type the library knows from torch, empty ones and scalars too."""
    drawn = st.builds(
        lambda shape, dtype, seed: torch.randint(
            0, 2, shape, generator=torch.Generator().manual_seed(seed)
        ).to(dtype),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from(TORCH_DTYPES),
        st.integers(0, 9),
    )
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return st.dictionaries(names, drawn, max_size=5)


def files() -> st.SearchStrategy[bytes]:
    # Metadata without entries are written as JSON that the library itself cannot read.
    texts = st.text("ab\n\u20ac", max_size=3)
    metadata = st.none() | st.dictionaries(texts, texts, min_size=1)
    return st.builds(save, tensors(), metadata)


@settings(deadline=None, max_examples=150)
@given(content=files())
def test_a_file_of_the_library_is_read_as_the_library_reads_it(path: Path, content: bytes) -> None:
    put(path, content)
    assert as_we_read(path) == as_the_library_reads(content)


@settings(deadline=None, max_examples=30)
@given(content=files())
def test_tensors_come_in_the_order_of_their_bytes(path: Path, content: bytes) -> None:
    """The reader goes through a file from its beginning to its end."""
    put(path, content)
    held = list(read_header(LocalFile(path), "x").values())
    ends = [each.offset + each.num_bytes for each in held]
    assert [each.offset for each in held[1:]] == ends[:-1]
    assert not ends or ends[-1] == len(content)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_has_the_librarys_size(path: Path, dtype: str) -> None:
    entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, DTYPE_BITS[dtype]]}
    content = as_file(json.dumps({"a": entry}), bytes(DTYPE_BITS[dtype]))
    put(path, content)
    assert taken_by_the_library(path)
    assert as_we_read(path) == as_the_library_reads(content)


FLOAT = bytes(4)

# -- damaged files ------------------------------------------------------------------------------

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


def entry(**changes: str) -> str:
    """A header of one float in the JSON's own words."""
    fields = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]", **changes}
    inside = ",".join(f'"{name}":{value}' for name, value in fields.items())
    return f'{{"a":{{{inside}}}}}'


def with_metadata(value: str) -> str:
    return f'{{"__metadata__":{value},{entry()[1:]}'


REFUSED = {
    "empty": b"",
    "shorter than its length": as_file(entry(), FLOAT)[:7],
    "length beyond the file": as_file(entry(), FLOAT, length=1000),
    "length beyond memory": as_file(entry(), FLOAT, length=2**63),
    "length beyond 64 bits with its 8": as_file(entry(), FLOAT, length=2**64 - 1),
    "no header": as_file(""),
    "no object": as_file("[]"),
    "null": as_file("null"),
    "not UTF-8": as_file(entry().encode().replace(b"a", b"\xff", 1), FLOAT),
    "byte order mark": as_file("\ufeff" + entry(), FLOAT),
    "half a surrogate pair in a name": as_file(entry().replace('"a"', '"\\ud800"'), FLOAT),
    "half a surrogate pair in the metadata": as_file(with_metadata('{"x":"\\udc00"}'), FLOAT),
    "nested without end": as_file('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", FLOAT),
    "nested where nobody looks": as_file(entry(x="[" * 200 + "]" * 200), FLOAT),
    "trailing bytes": as_file(entry(), FLOAT + b"x"),
    "missing bytes": as_file(entry(), FLOAT[:3]),
    "text after the header": as_file(entry() + "{}", FLOAT),
    "unknown dtype": as_file(entry(dtype='"F33"'), FLOAT),
    "dtype that is a list": as_file(entry(dtype="[]"), FLOAT),
    "dtype without text": as_file(entry(dtype="null"), FLOAT),
    "shape that is a text": as_file(entry(shape='""'), FLOAT),
    "shape that is an object": as_file(entry(shape="{}"), FLOAT),
    "shape of an empty object, no bytes": as_file(entry(shape="{}", data_offsets="[0,0]")),
    "float size": as_file(entry(shape="[1.0]"), FLOAT),
    "true size": as_file(entry(shape="[true]"), FLOAT),
    "negative size": as_file(entry(shape="[-1]"), FLOAT),
    "two negative sizes": as_file(entry(shape="[-1,-1]"), FLOAT),
    "minus zero": as_file(entry(shape="[-0]", data_offsets="[0,0]")),
    "offset minus zero": as_file(entry(data_offsets="[-0,4]"), FLOAT),
    "negative offset": as_file(entry(data_offsets="[-4,0]"), FLOAT),
    "offsets backwards": as_file(entry(shape="[0]", data_offsets="[4,0]"), FLOAT),
    "one offset": as_file(entry(data_offsets="[4]"), FLOAT),
    "three offsets": as_file(entry(data_offsets="[0,4,4]"), FLOAT),
    "offsets that are a text": as_file(entry(data_offsets='"04"'), FLOAT),
    "size beyond 64 bits": as_file(entry(shape=f"[0,{2**64}]", data_offsets="[0,0]")),
    "product beyond 64 bits": as_file(entry(shape=f"[{2**63},4,0]", data_offsets="[0,0]")),
    "half a byte": as_file(entry(dtype='"F4"', shape="[1]", data_offsets="[0,0]")),
    "field missing": as_file('{"a":{"dtype":"F32","shape":[1]}}', FLOAT),
    "field twice": as_file(entry().replace('"shape"', '"dtype":"F32","shape"'), FLOAT),
    "entry that is a number": as_file('{"a":1}', FLOAT),
    "metadata that is a list": as_file(with_metadata("[]"), FLOAT),
    "metadata that is a text": as_file(with_metadata('"pt"'), FLOAT),
    "metadata of numbers": as_file(with_metadata('{"format":1}'), FLOAT),
    "metadata of objects": as_file(with_metadata('{"format":{}}'), FLOAT),
    "line breaks in a name": as_file(
        entry(dtype='"F33"').replace('"a"', '"a\\n\\u001b[2J"'), FLOAT
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_library_refuses_is_refused(path: Path, case: str) -> None:
    put(path, REFUSED[case])
    assert not taken_by_the_library(path)
    assert refusal_of(path)


TAKEN = {
    "one float": as_file(entry(), FLOAT),
    "no tensor": as_file("{}"),
    "metadata null": as_file(with_metadata("null"), FLOAT),
    "metadata without entries": as_file(with_metadata("{}"), FLOAT),
    "white space around": as_file(f"\n\t {entry()} \r\n", FLOAT),
    "escaped letters": as_file(entry().replace("dtype", "dt\\u0079pe"), FLOAT),
    "whole surrogate pair": as_file(entry().replace('"a"', '"\\ud83d\\ude00"'), FLOAT),
    "no name": as_file(entry().replace('"a"', '""'), FLOAT),
    "empty": as_file(entry(shape="[0,7]", data_offsets="[0,0]")),
    "scalar": as_file(entry(shape="[]"), FLOAT),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_the_library_takes_is_taken(path: Path, case: str) -> None:
    put(path, TAKEN[case])
    assert taken_by_the_library(path)
    assert as_we_read(path) == as_the_library_reads(TAKEN[case])


MORE_REFUSED = {
    "tensor twice": ("a name stands twice", as_file(f"{entry()[:-1]},{entry()[1:]}", FLOAT)),
    "metadata key twice": (
        "a name stands twice",
        as_file(with_metadata('{"x":"y","x":"z"}'), FLOAT),
    ),
    "unknown field": ("has not exactly the fields", as_file(entry(x="1"), FLOAT)),
    "negative number in an unknown field": (
        "holds the negative number",
        as_file(entry(x="[-1]"), FLOAT),
    ),
    "list for an object": (
        "has not exactly the fields",
        as_file('{"a":["F32",[1],[0,4]]}', FLOAT),
    ),
    "zero times more than 64 bits": (
        "a shape that no file can hold",
        as_file(entry(shape=f"[0,{2**63},4]", data_offsets="[0,0]")),
    ),
}


@pytest.mark.parametrize("case", MORE_REFUSED)
def test_where_we_are_stricter_than_the_library(path: Path, case: str) -> None:
    reason, content = MORE_REFUSED[case]
    assert reason in STRICTER
    put(path, content)
    assert taken_by_the_library(path)
    assert reason in refusal_of(path)


def test_a_huge_length_is_refused_without_the_memory(path: Path) -> None:
    """A file of 200 MB costs nothing on the disk, and its header is not even asked for."""
    path.write_bytes((LONGEST_HEADER + 1).to_bytes(8, "little"))
    with path.open("ab") as file:
        file.truncate(2 * LONGEST_HEADER)
    assert not taken_by_the_library(path)
    asked: list[int] = []
    really = safetensors_header._bytes

    def watched(file: LocalFile, offset: int, length: int) -> bytes:
        asked.append(length)
        return really(file, offset, length)

    with mock.patch.object(safetensors_header, "_bytes", watched):
        assert "claims 100000001 bytes" in refusal_of(path)
    assert asked == [8]
