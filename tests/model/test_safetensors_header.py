"""A safetensors header as we read it: whole files as the library does, and what each refuses."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bipline.model import safetensors_header
from bipline.model.safetensors_header import DTYPE_BITS, LONGEST_HEADER, read_header
from bipline.storage.folder import LocalFile
from tests.model.safetensors_library import (
    FLOAT,
    STRICTER,
    as_file,
    as_the_library_reads,
    as_we_read,
    put,
    refusal_of,
    taken_by_the_library,
)

TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16,
    torch.int32, torch.uint32, torch.float32, torch.int64, torch.uint64, torch.float64,
    torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


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


def entry(**changes: str) -> str:
    """A header of one float in the JSON's own words."""
    fields = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]", **changes}
    inside = ",".join(f'"{name}":{value}' for name, value in fields.items())
    return f'{{"a":{{{inside}}}}}'


def with_metadata(value: str) -> str:
    return f'{{"__metadata__":{value},{entry()[1:]}'


REFUSED = {
    "empty": b"",
    "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
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
