"""Streaming writer of safetensors shards: one tensor in memory, hashed as it is written.

The layout of every shard is planned from names, dtypes and shapes before the first byte, so a
shard's header is written first and its tensors follow in order. The same tensors always give
the same bytes: no timestamp, no path, no order that depends on a dictionary.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from bipline.artifacts.directory import DirectoryWriter, write_text
from bipline.artifacts.errors import InvalidInput
from bipline.model.checkpoint import FLOAT_DTYPES, INDEX_FILE, SINGLE_FILE, tensor_bytes

DEFAULT_SHARD_BYTES = 5 * 10**9


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
    read: Callable[[str], torch.Tensor],
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the shards of a model, and their index when there is more than one.

    ``read`` is called once per tensor, in order, and must give the declared shape and dtype.
    """
    shards = plan_shards(specs, shard_bytes)
    names = _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        _write_shard(writer, name, shard, read)
    if len(shards) > 1:
        weight_map = {
            spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard
        }
        total = sum(spec.num_bytes for spec in specs)
        write_json(
            writer, INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def write_json(writer: DirectoryWriter, name: str, value: Any) -> None:
    """Write a JSON file of a model directory, indented and sorted."""
    write_text(writer.path / name, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _header(shard: list[TensorSpec]) -> bytes:
    """The safetensors header: 8 bytes of length, then JSON padded with spaces to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
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
    read: Callable[[str], torch.Tensor],
) -> None:
    sha256 = hashlib.sha256()
    size = 0
    with (writer.path / name).open("wb") as file:
        for data in _shard_chunks(shard, read):
            file.write(data)
            sha256.update(data)
            size += len(data)
        file.flush()
        os.fsync(file.fileno())
    writer.add_hashed(name, size, sha256.hexdigest())


def _shard_chunks(
    shard: list[TensorSpec], read: Callable[[str], torch.Tensor]
) -> Iterable[bytes | memoryview[int]]:
    yield _header(shard)
    for spec in shard:
        tensor = read(spec.name)
        if tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{spec.name}: shape {tuple(tensor.shape)}, announced {spec.shape}")
        data = tensor_bytes(tensor)
        if len(data) != spec.num_bytes:
            raise ValueError(f"{spec.name}: {tensor.dtype} is not the announced {spec.dtype}")
        yield data
