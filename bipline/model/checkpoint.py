"""A checkpoint on disk: config.json and safetensors shards, checked once, read lazily.

Only JSON and safetensors are read. Pickled weights, custom code (``auto_map``) and quantised
sources are refused with the reason, so that no byte of a model is ever executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bipline.artifacts.digests import digest_bytes, digest_json, digest_listing
from bipline.artifacts.errors import InvalidInput
from bipline.model.families import (
    Family,
    ModelShape,
    block_axes,
    build_of,
    family_of,
    model_axes,
    shape_of,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
FLOAT_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Checkpoint:
    """An opened model directory. ``shards`` maps every tensor's full name to its shard."""

    directory: Path
    config: dict[str, Any]
    family: Family
    shape: ModelShape
    shards: dict[str, Path] = field(repr=False)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, mapped from its shard and not copied."""
        with safe_open(self.shards[name], framework="pt") as file:
            return file.get_tensor(name)

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Rows of a matrix by distinct ascending indices, without reading the others."""
        with safe_open(self.shards[name], framework="pt") as file:
            part = file.get_slice(name)
            return torch.cat([part[int(index) : int(index) + 1] for index in indices])

    def tensor_header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The safetensors dtype (``BF16``, ...) and the shape of a tensor."""
        with safe_open(self.shards[name], framework="pt") as file:
            part = file.get_slice(name)
            return part.get_dtype(), tuple(part.get_shape())

    def block_prefix(self, index: int) -> str:
        """What the full names of a block's tensors begin with."""
        return build_of(self.family).block_prefix.format(index=index)

    def block_weights(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of one block by their names inside it."""
        prefix = self.block_prefix(index)
        return {name: self.tensor(prefix + name) for name in block_axes(self.family, self.config)}

    @property
    def output_name(self) -> str:
        """The tensor that turns hidden states into logits."""
        return "model.embed_tokens.weight" if self.shape.tie_word_embeddings else "lm_head.weight"

    @cached_property
    def parameters(self) -> int:
        """The number of stored parameters (a tied embedding counts once)."""
        total = 0
        for name in self.shards:
            count = 1
            for size in self.tensor_header(name)[1]:
                count *= size
            total += count
        return total

    @property
    def weight_bytes(self) -> int:
        """Size of the weight shards on disk, in bytes."""
        return sum(path.stat().st_size for path in set(self.shards.values()))

    @cached_property
    def tensor_digest(self) -> str:
        """The identity of the model: names, dtypes, shapes and bytes of its tensors.

        It does not depend on where the directory lies or how the tensors are sharded.
        """
        lines = {}
        for name in self.shards:
            dtype, shape = self.tensor_header(name)
            content = digest_bytes(tensor_bytes(self.tensor(name)))
            lines[name] = digest_json([dtype, shape, content])
        return digest_listing(lines)


def tensor_bytes(tensor: torch.Tensor) -> memoryview[int]:
    """The bytes of a tensor in row order, as safetensors stores them."""
    data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Open a model directory and check everything that can be checked without reading weights.

    Raises InvalidInput, in one line, for whatever makes the directory unusable: missing files,
    pickles, custom code, unknown or quantised models, broken shards, wrong names or shapes.
    """
    config = read_config(directory)
    family = family_of(str(config.get("model_type")))
    shards = _shards(directory, set(build_of(family).ignored))
    checkpoint = Checkpoint(directory, config, family, shape_of(config), shards)
    _check_tensors(checkpoint)
    return checkpoint


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json as plain JSON, refusing what would run code or is quantised."""
    if not directory.is_dir():
        raise InvalidInput(f"{directory}: no such model directory")
    path = directory / "config.json"
    if not path.is_file():
        raise InvalidInput(f"{directory}: no config.json, so it is not a model directory")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{path}: not a JSON object")
    if "auto_map" in config:
        raise InvalidInput(f"{path}: auto_map asks for the model's own code, which is never run")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise InvalidInput(f"{path}: quantised source ({method}); give the unquantised model")
    return config


def _shards(directory: Path, ignored: set[str]) -> dict[str, Path]:
    if (directory / INDEX_FILE).is_file():
        shards = _indexed_shards(directory)
    elif (directory / SINGLE_FILE).is_file():
        path = directory / SINGLE_FILE
        shards = dict.fromkeys(_names_in(path), path)
    else:
        raise InvalidInput(_no_weights(directory))
    return {n: path for n, path in shards.items() if not any(n.endswith(end) for end in ignored)}


def _no_weights(directory: Path) -> str:
    pickled = [path.name for pattern in PICKLED for path in directory.glob(pattern)]
    if pickled:
        return (
            f"{directory}: only pickled weights ({pickled[0]}), which can run code; "
            "convert them to safetensors first"
        )
    return f"{directory}: no {SINGLE_FILE} and no {INDEX_FILE}"


def _indexed_shards(directory: Path) -> dict[str, Path]:
    path = directory / INDEX_FILE
    try:
        weight_map = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{path}: no weight_map that names a shard for each tensor") from None
    found: dict[str, Path] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InvalidInput(
                f"{path}: shard name {shard!r} is not a plain .safetensors file name"
            )
        if not (directory / shard).is_file():
            raise InvalidInput(f"{path}: names the shard {shard}, which is missing")
        for name in _names_in(directory / shard):
            if name in found:
                raise InvalidInput(f"{path}: tensor {name} lies in two shards")
            found[name] = directory / shard
    for name, shard in weight_map.items():
        if name not in found or found[name].name != shard:
            raise InvalidInput(f"{path}: tensor {name} is not in the shard {shard}")
    return found


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise InvalidInput(f"{path}: not a whole safetensors file: {error}") from None


def _check_tensors(checkpoint: Checkpoint) -> None:
    expected = model_axes(checkpoint.family, checkpoint.config)
    for name, axes in expected.items():
        if name not in checkpoint.shards:
            raise InvalidInput(f"{checkpoint.directory}: tensor {name} is missing")
        dtype, shape = checkpoint.tensor_header(name)
        if dtype not in FLOAT_DTYPES:
            raise InvalidInput(f"{checkpoint.directory}: {name} is {dtype}; quantised source?")
        declared = tuple(checkpoint.shape.axis_size(axis) for axis in axes)
        if shape != declared:
            raise InvalidInput(
                f"{checkpoint.directory}: {name} has shape {shape}, config.json says {declared}"
            )
    _check_extra(checkpoint, expected)


def _check_extra(checkpoint: Checkpoint, expected: dict[str, Any]) -> None:
    extra = set(checkpoint.shards) - set(expected)
    # A tied model may store its output matrix a second time; the embedding is the one that counts.
    if checkpoint.shape.tie_word_embeddings:
        tied = extra & set(build_of(checkpoint.family).output_weights)
        for name in tied:
            del checkpoint.shards[name]
        extra -= tied
    if extra:
        raise InvalidInput(
            f"{checkpoint.directory}: tensor {min(extra)} does not belong to a "
            f"{checkpoint.config['model_type']} with this config.json"
        )
