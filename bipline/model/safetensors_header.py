"""The header of a safetensors file, read strictly: where every tensor lies, and nothing else.

The format is 8 bytes of length (little endian), a JSON object, and the tensors' bytes. The
checks are those of the safetensors library (https://github.com/huggingface/safetensors): the
tensors cover the rest of the file without holes and without overlap. Only the header is read,
so a file may lie anywhere that gives ranges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.storage.folder import ByteFile

LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000
# How the text begins that a clone without Git LFS leaves in place of a large file.
POINTER = b"version "
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}
# The library counts in 64 bits, and refuses a shape whose product leaves them.
LARGEST_COUNT = 2**64 - 1
# Bits of an element, so that types narrower than a byte are recognised before they are refused.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, safetensors dtype, shape, and bytes in the file."""

    file: ByteFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return prod(self.shape)


def read_header(file: ByteFile, where: str) -> dict[str, StoredTensor]:
    """The tensors of a file by name, in the order of their bytes.

    Raises InvalidInput, naming ``where``, for a file that is not whole safetensors.
    """
    try:
        return _tensors(file)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{where}: not a whole safetensors file: {error}") from None


def read_metadata(file: ByteFile) -> dict[str, str]:
    """The texts in a file's ``__metadata__``; none where it has none. Raises InvalidInput."""
    try:
        metadata: dict[str, str] | None = _header(file)[0].get(METADATA)
        _check_metadata(metadata)
        return metadata or {}
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"{file.name}: not a whole safetensors file: {error}") from None


def _tensors(file: ByteFile) -> dict[str, StoredTensor]:
    header, start = _header(file)
    _check_metadata(header.pop(METADATA, None))
    tensors = {name: _tensor(file, start, name, entry) for name, entry in header.items()}
    return _covering(tensors, start, file.size)


def _header(file: ByteFile) -> tuple[dict[str, Any], int]:
    """The header as JSON, and where the tensors' bytes begin."""
    if file.size < LENGTH_BYTES:
        raise ValueError("shorter than a header")
    length = int.from_bytes(first := _bytes(file, 0, LENGTH_BYTES), "little")
    if first == POINTER:
        raise ValueError("a pointer of Git LFS instead of the file; fetch it with git lfs pull")
    if length > LONGEST_HEADER:
        raise ValueError(f"the header claims {length} bytes, more than {LONGEST_HEADER}")
    start = LENGTH_BYTES + length
    if start > file.size:
        raise ValueError("ends inside its header")
    text = _bytes(file, LENGTH_BYTES, length).decode("utf-8")
    header = json.loads(text, object_pairs_hook=_distinct, parse_int=_whole)
    if not isinstance(header, dict):
        raise TypeError("the header is not an object")
    return header, start


def _check_metadata(metadata: Any) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not (texts or metadata is None):
        raise TypeError("its metadata is not an object of texts")


def _tensor(file: ByteFile, start: int, name: str, entry: Any) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        raise TypeError(f"{name!r} has not exactly the fields {', '.join(sorted(FIELDS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BITS:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    if not (_all_whole(shape) and _all_whole(offsets) and len(offsets) == 2):
        raise ValueError(f"{name!r} has sizes or offsets that are not whole numbers")
    begin, end = offsets
    if prod(size or 1 for size in shape) * DTYPE_BITS[dtype] > LARGEST_COUNT:
        raise ValueError(f"{name!r} has a shape that no file can hold: {shape}")
    if prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"{name!r} has {end - begin} bytes, not those of its shape {shape}")
    return StoredTensor(file, dtype, tuple(shape), start + begin, end - begin)


def _all_whole(sizes: Any) -> bool:
    return isinstance(sizes, list) and all(type(size) is int for size in sizes)


def _covering(tensors: dict[str, StoredTensor], start: int, size: int) -> dict[str, StoredTensor]:
    """The tensors in the order of their bytes, which must leave no hole and not overlap."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes))
    place = start
    for name, tensor in ordered:
        if tensor.offset != place:
            raise ValueError(f"{name!r} does not begin where the tensor before it ends")
        place += tensor.num_bytes
    if place != size:
        raise ValueError(f"it has {size} bytes, its header accounts for {place}")
    return dict(ordered)


def _bytes(file: ByteFile, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    file.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name stands twice in the header")
    for text in (text for pair in pairs for text in pair if isinstance(text, str)):
        text.encode()  # JSON can escape half a surrogate pair, which is no text
    return value


def _whole(digits: str) -> int:
    if digits.startswith("-"):  # -0 too, which is no whole number for the library
        raise ValueError(f"the header holds the negative number {digits}")
    return int(digits)
