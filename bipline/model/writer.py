"""Streaming writer of safetensors shards: a few pieces in memory, hashed as they are written.

The layout of every shard is planned from names, dtypes and shapes before the first byte, so a
shard's header is written first and its tensors follow in order. The same tensors always give
the same bytes: no timestamp, no path, no order that depends on a dictionary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.model.checkpoint import FLOAT_DTYPES, tensor_bytes
from bipline.model.opening import INDEX_FILE, SINGLE_FILE
from bipline.storage.ahead import ahead
from bipline.storage.digests import CHUNK_BYTES, digest_json, digest_listing
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.synced_file import SyncedFile

DEFAULT_SHARD_BYTES = 5 * 10**9
# Pieces that wait to be written: enough for reading and writing to overlap.
PIECES_AHEAD = 3

Pieces = Callable[[list[str]], Iterable[tuple[str, torch.Tensor]]]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: full name, safetensors dtype (``BF16``, ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return prod(self.shape) * FLOAT_DTYPES[self.dtype]


def plan_shards(specs: Iterable[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Split tensors, in order, into shards of at most ``shard_bytes`` (one tensor at least)."""
    if shard_bytes < 1:
        raise InvalidInput(f"shard size {shard_bytes}: must be at least one byte")
    shards: list[list[TensorSpec]] = []
    room = 0
    for spec in specs:
        if not shards or spec.num_bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(spec)
        room -= spec.num_bytes
    return shards


def write_weights(
    writer: DirectoryWriter,
    specs: list[TensorSpec],
    read: Pieces,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write the shards of a model, and their index when there is more than one.

    ``read`` is called once per shard with the names of its tensors, in a thread that runs ahead
    of the writing; it gives them in that order, in pieces of whole rows with their names. Shards
    that ``writer`` holds already are left out. ``metadata`` goes into every header. Returns the
    tensor digest of what was written.
    """
    shards = plan_shards(specs, shard_bytes)
    names = _shard_names(len(shards))
    contents: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        if writer.has(name):
            contents |= _stored_contents(writer.path / name, shard)
        else:
            contents |= _write_shard(writer, name, shard, read, metadata or {})
    if len(shards) > 1:
        weight_map = {
            spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard
        }
        total = sum(spec.num_bytes for spec in specs)
        write_json(
            writer, INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    digests = {s.name: digest_json([s.dtype, list(s.shape), contents[s.name]]) for s in specs}
    return digest_listing(digests)


def shard_file_bytes(
    specs: Iterable[TensorSpec], shard_bytes: int, metadata: Mapping[str, str]
) -> int:
    """The bytes of all shards that :func:`write_weights` would write, known before it does."""
    return sum(
        len(_header(shard, metadata)) + sum(spec.num_bytes for spec in shard)
        for shard in plan_shards(specs, shard_bytes)
    )


def write_json(writer: DirectoryWriter, name: str, value: Any) -> None:
    """Write a JSON file of a model directory, indented and sorted."""
    write_text(writer.path / name, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _header(shard: list[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header: 8 bytes of length, then JSON padded with spaces to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for spec in shard:
        end = offset + spec.num_bytes
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_shard(
    writer: DirectoryWriter,
    name: str,
    shard: list[TensorSpec],
    read: Pieces,
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """Write a shard; the sha256 of the bytes of each tensor in it."""
    waiting = ahead(_shard_chunks(shard, read), PIECES_AHEAD)
    contents = {spec.name: hashlib.sha256() for spec in shard}
    with (
        SyncedFile(writer.path / name) as file, waiting as chunks, ThreadPoolExecutor(1) as beside,
    ):  # fmt: skip
        file.write(_header(shard, metadata))
        for tensor, data in chunks:
            hashed = beside.submit(contents[tensor].update, data)
            file.write(data)
            hashed.result()
    writer.add_hashed(name, file.size, file.sha256)
    return {tensor: content.hexdigest() for tensor, content in contents.items()}


def _stored_contents(path: Path, shard: list[TensorSpec]) -> dict[str, str]:
    """The same of a shard that an earlier run finished."""
    contents = {}
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), 1)
        for spec in shard:
            sha256, left = hashlib.sha256(), spec.num_bytes
            while left:
                piece = file.read(min(CHUNK_BYTES, left))
                if not piece:
                    raise InvalidInput(f"{path}: is shorter than its tensors; delete it")
                sha256.update(piece)
                left -= len(piece)
            contents[spec.name] = sha256.hexdigest()
    return contents


def _shard_chunks(shard: list[TensorSpec], read: Pieces) -> Iterator[tuple[str, memoryview[int]]]:
    """A shard's tensors in order, in pieces, checked against what its header announces."""
    dtypes = {spec.name: spec.dtype for spec in shard}
    left = {spec.name: spec.num_bytes for spec in shard}
    for name, piece in read(list(left)):
        if FLOAT_DTYPES[dtypes[name]] != piece.dtype.itemsize:
            raise ValueError(f"{name}: {piece.dtype} is not the announced {dtypes[name]}")
        data = tensor_bytes(piece)
        left[name] -= len(data)
        yield name, data
    for name, missing in left.items():
        if missing:
            raise ValueError(f"{name}: {missing} bytes fewer than its shape has")
