"""Opening a model: config.json and the headers of its shards, checked before a weight is read.

Only JSON and safetensors are read, from a directory or an ``s3://`` prefix. Pickled weights,
custom code (``auto_map``) and quantised sources are refused with the reason, so that no byte of
a model is ever executed. A per-layer model of ours names code, which must be ours to the byte.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.machine import free_memory
from bipline.model.checkpoint import FLOAT_DTYPES, Checkpoint
from bipline.model.families import build_of, family_of, shape_of, tensor_shapes
from bipline.model.per_layer.shipping import check_code
from bipline.model.safetensors_header import StoredTensor, read_header
from bipline.storage.folder import Folder, open_folder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# A model below this share of the free memory stays in the page cache for the next stage.
CACHED_SHARE = 0.5
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def open_checkpoint(location: Path | str, expected_digest: str | None = None) -> Checkpoint:
    """Open a model directory (or ``s3://`` prefix) and check all but the weights themselves.

    ``expected_digest`` is what the weights must turn out to be when all of them were read.
    Raises InvalidInput, in one line, for whatever makes it unusable: missing files, pickles,
    custom code, unknown or quantised models, broken shards, wrong names or shapes.
    """
    folder = open_folder(location)
    config = read_config(folder)
    family = family_of(str(config.get("model_type")))
    ignored = build_of(family).ignored
    tensors = {
        name: stored for name, stored in _stored(folder).items() if not name.endswith(ignored)
    }
    checkpoint = Checkpoint(folder, config, family, shape_of(config), tensors, expected_digest)
    _check_tensors(checkpoint)
    if checkpoint.weight_bytes > CACHED_SHARE * free_memory():
        for file in checkpoint.files.values():
            file.avoid_cache()
    return checkpoint


def read_config(folder: Folder | Path) -> dict[str, Any]:
    """Read config.json as plain JSON, refusing what would run code or is quantised."""
    folder = open_folder(folder) if isinstance(folder, Path) else folder
    if not folder.exists():
        raise InvalidInput(f"{folder.location}: no such model directory")
    if "config.json" not in folder.names():
        raise InvalidInput(f"{folder.location}: no config.json, so it is not a model directory")
    where = f"{folder.location}/config.json"
    try:
        config = json.loads(folder.read("config.json").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{where}: not a JSON object")
    check_code(folder, config)
    if quantised := config.get("quantization_config"):
        known = isinstance(quantised, dict)
        method = quantised.get("quant_method", "unknown") if known else quantised
        raise InvalidInput(f"{where}: quantised source ({method}); give the unquantised model")
    return config


def _stored(folder: Folder) -> dict[str, StoredTensor]:
    names = folder.names()
    if INDEX_FILE in names:
        return _indexed(folder, set(names))
    if SINGLE_FILE in names:
        return _header_of(folder, SINGLE_FILE)
    pickled = [name for name in names if any(fnmatchcase(name, each) for each in PICKLED)]
    if pickled:
        raise InvalidInput(
            f"{folder.location}: only pickled weights ({pickled[0]}), which can run code; "
            "convert them to safetensors first"
        )
    raise InvalidInput(f"{folder.location}: no {SINGLE_FILE} and no {INDEX_FILE}")


def _header_of(folder: Folder, name: str) -> dict[str, StoredTensor]:
    return read_header(folder.open(name), f"{folder.location}/{name}")


def _indexed(folder: Folder, names: set[str]) -> dict[str, StoredTensor]:
    where = f"{folder.location}/{INDEX_FILE}"
    try:
        weight_map = dict(json.loads(folder.read(INDEX_FILE).decode("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInput(f"{where}: no weight_map that names a shard for each tensor") from None
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        _check_shard_name(where, shard, names)
        for name, stored in _header_of(folder, shard).items():
            if name in found:
                raise InvalidInput(f"{where}: tensor {name} lies in two shards")
            found[name] = stored
    for name, shard in weight_map.items():
        if name not in found or found[name].file.name != shard:
            raise InvalidInput(f"{where}: tensor {name} is not in the shard {shard}")
    return found


def _check_shard_name(where: str, shard: str, names: set[str]) -> None:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
        raise InvalidInput(f"{where}: shard name {shard!r} is not a plain .safetensors file name")
    if shard not in names:
        raise InvalidInput(f"{where}: names the shard {shard}, which is missing")


def _check_tensors(checkpoint: Checkpoint) -> None:
    expected = tensor_shapes(checkpoint.family, checkpoint.config, checkpoint.shape)
    for name, declared in expected.items():
        if name not in checkpoint.tensors:
            raise InvalidInput(f"{checkpoint.location}: tensor {name} is missing")
        dtype, shape = checkpoint.tensor_header(name)
        if dtype not in FLOAT_DTYPES:
            raise InvalidInput(f"{checkpoint.location}: {name} is {dtype}; quantised source?")
        if shape != declared:
            raise InvalidInput(
                f"{checkpoint.location}: {name} has shape {shape}, config.json says {declared}"
            )
    _check_extra(checkpoint, expected)


def _check_extra(checkpoint: Checkpoint, expected: dict[str, Any]) -> None:
    extra = set(checkpoint.tensors) - set(expected)
    # A tied model may store its output matrix a second time; the embedding is the one that counts.
    if checkpoint.shape.tie_word_embeddings:
        tied = extra & set(build_of(checkpoint.family).output_weights)
        for name in tied:
            del checkpoint.tensors[name]
        extra -= tied
    if extra:
        raise InvalidInput(
            f"{checkpoint.location}: tensor {min(extra)} does not belong to a "
            f"{checkpoint.config['model_type']} with this config.json"
        )
