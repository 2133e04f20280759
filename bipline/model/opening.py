"""Opening a model: config.json and the headers of its shards, checked before a weight is read.

Only JSON and safetensors are read, from a directory or an ``s3://`` prefix. Pickled weights,
custom code (``auto_map``) and quantised sources are refused with the reason, so that no byte of
a model is ever executed. A per-layer model of ours names code, which must be ours to the byte.

Which tensors a folder holds is decided here, once, as transformers decides; a folder that it
would take for another model (an adapter beside the weights, shards beside a single file) is
refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.base.machine import free_memory
from bipline.base.progress import note
from bipline.model.checkpoint import FLOAT_DTYPES, PIECE_BYTES, TORCH_DTYPES, Checkpoint
from bipline.model.config_keys import check_around, checked_config, shown
from bipline.model.families import (
    Family,
    build_of,
    family_in,
    family_of,
    predicting_prefixes,
    shape_of,
    tensor_shapes,
)
from bipline.model.naming import naming_of
from bipline.model.per_layer.shipping import check_code
from bipline.model.safetensors_header import StoredTensor, read_header
from bipline.model.wrappers import TEXT_CONFIG, decoder_config, nesting_of, wrapper_of
from bipline.storage.folder import Folder, open_folder
from bipline.storage.strict_json import parse_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# A model below this share of the free memory stays in the page cache for the next stage.
CACHED_SHARE = 0.5
CONVERTING = "docs/failures.md, Pickled weights"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# How the unquantised model is made, where no one publishes it.
UNQUANTISED = {
    "mxfp4": ": load it by transformers with Mxfp4Config(dequantize=True), save it with "
    "save_pretrained, and take quantization_config out of its config.json if it is still there"
}
ADAPTER_FILE = "adapter_config.json"
# What was found of two matrices in files that are still in the state they were in.
_EQUAL: dict[str, bool] = {}
# A training run's own shards, which transformers takes for the model wherever it sees one.
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def open_checkpoint(location: Path | str, expected_digest: str | None = None) -> Checkpoint:
    """Open a model directory (or ``s3://`` prefix) and check all but the weights themselves.

    ``expected_digest`` is what the weights must turn out to be when all of them were read.
    Raises InvalidInput, in one line, for whatever makes it unusable: missing files, pickles,
    custom code, unknown or quantised models, broken shards, wrong names or shapes.
    """
    folder = open_folder(location)
    config = read_config(folder)
    family = _stored_family(folder, config)
    ignored = build_of(family).ignored + family.ignored
    tensors = {
        name: stored for name, stored in _stored(folder).items() if not name.endswith(ignored)
    }
    tensors = _without_predicting(tensors, config, family, folder.location)
    checkpoint = Checkpoint(folder, config, family, shape_of(config), tensors, expected_digest)
    checkpoint = _with_its_output(_by_class(_unwrapped(checkpoint)))
    _check_tensors(checkpoint)
    if checkpoint.weight_bytes > CACHED_SHARE * free_memory():
        for file in checkpoint.files.values():
            file.avoid_cache()
    return checkpoint


def _stored_family(folder: Folder, config: dict[str, Any]) -> Family:
    """The family that a folder's tensors are stored as; its ``config`` may be of another class."""
    said = _config_of(folder)
    if wrapper_of(said):
        return family_in(config)
    stored = family_of(str(said["model_type"]))
    return stored if stored.read_as else family_in(config)


def _without_predicting(
    tensors: dict[str, StoredTensor], config: dict[str, Any], family: Family, location: str
) -> dict[str, StoredTensor]:
    """The tensors less those of blocks that guess later tokens, behind the decoder's last one."""
    begins = predicting_prefixes(family, config)
    held = {name: each for name, each in tensors.items() if not name.startswith(begins)}
    if len(held) < len(tensors):
        _tell_predicting(location, len(tensors) - len(held))
    return held


@cache
def _tell_predicting(location: str, count: int) -> None:
    note(
        f"{location}: {count} tensors of blocks that guess later tokens are left out, as "
        "transformers leaves them out"
    )


def _unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    """A decoder's tensors under their own names, and what lies around it; most are alone."""
    config = _config_of(checkpoint.folder)
    if wrapper_of(config) is None:
        return checkpoint
    nesting, names = nesting_of(config, checkpoint.tensors, checkpoint.location)
    tensors = {names[name]: stored for name, stored in checkpoint.tensors.items()}
    _tell_beside(checkpoint.location, str(config["model_type"]), len(nesting.beside))
    return replace(checkpoint, tensors=tensors, nesting=nesting)


def _by_class(checkpoint: Checkpoint) -> Checkpoint:
    """Tensors by the names of their class, whatever files call them."""
    known = tensor_shapes(checkpoint.family, checkpoint.config, checkpoint.shape)
    naming = naming_of(checkpoint.family, known, checkpoint.tensors)
    own = {naming.stored_name(name): name for name in known}
    tensors = {own.get(name, name): stored for name, stored in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors, naming=naming)


@cache
def _tell_beside(location: str, model_type: str, count: int) -> None:
    note(
        f"{location}: the decoder inside a {model_type} is what is measured and pruned; its "
        f"{count} other tensors are copied unchanged"
    )


def read_config(folder: Folder | Path) -> dict[str, Any]:
    """Read config.json: known keys in their ranges, with what it leaves to its class written out.

    It is that of the class by which the model is run, or its decoder where that lies in another.
    Raises InvalidInput, in one line, for what would run code, is quantised or is out of range.
    """
    folder = open_folder(folder) if isinstance(folder, Path) else folder
    config, where = _config_of(folder), f"{folder.location}/config.json"
    check_code(folder, config)
    if quantised := config.get("quantization_config"):
        known = isinstance(quantised, dict)
        method = quantised.get("quant_method", "unknown") if known else quantised
        raise InvalidInput(
            f"{where}: quantised source ({shown(method)}); give the unquantised model"
            f"{UNQUANTISED.get(str(method), '')}"
        )
    if wrapper := wrapper_of(config):
        check_around(config, (*wrapper.keys, TEXT_CONFIG), where)
        return checked_config(decoder_config(config, where), f"{where}: {TEXT_CONFIG}")
    return checked_config(config, where)


def _config_of(folder: Folder) -> dict[str, Any]:
    """What a folder's config.json says."""
    if not folder.exists():
        raise InvalidInput(f"{folder.location}: no such model directory")
    if "config.json" not in folder.names():
        raise InvalidInput(f"{folder.location}: no config.json, so it is not a model directory")
    where = f"{folder.location}/config.json"
    config = parse_json(folder.read("config.json"), where)
    if not isinstance(config, dict):
        raise InvalidInput(f"{where}: not a JSON object")
    return config


def _stored(folder: Folder) -> dict[str, StoredTensor]:
    names = folder.names()
    _refuse_other_models(folder.location, names)
    if INDEX_FILE in names:
        return _indexed(folder, set(names))
    if SINGLE_FILE in names:
        return _header_of(folder, SINGLE_FILE)
    pickled = [name for name in names if any(fnmatchcase(name, each) for each in PICKLED)]
    if pickled:
        raise InvalidInput(
            f"{folder.location}: only pickled weights ({pickled[0]}), which can run code; "
            f"convert them to safetensors first ({CONVERTING})"
        )
    raise InvalidInput(f"{folder.location}: no {SINGLE_FILE} and no {INDEX_FILE}")


def _refuse_other_models(location: str, names: list[str]) -> None:
    """Raise InvalidInput for files that make transformers load another model than the weights."""
    if ADAPTER_FILE in names:
        raise InvalidInput(
            f"{location}: {ADAPTER_FILE} makes transformers add an adapter to the weights; "
            "merge the adapter, or move its files elsewhere"
        )
    if shards := [name for name in names if DISTRIBUTED.fullmatch(name)]:
        raise InvalidInput(
            f"{location}: {shards[0]} is a shard of a training run, which transformers loads "
            f"instead of {SINGLE_FILE}; move such files elsewhere"
        )


def _header_of(folder: Folder, name: str) -> dict[str, StoredTensor]:
    return read_header(folder.open(name), f"{folder.location}/{name}")


def _indexed(folder: Folder, names: set[str]) -> dict[str, StoredTensor]:
    where = f"{folder.location}/{INDEX_FILE}"
    index = parse_json(folder.read(INDEX_FILE), where)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not (isinstance(weight_map, dict) and all(isinstance(s, str) for s in weight_map.values())):
        raise InvalidInput(f"{where}: no weight_map that names a shard for each tensor")
    if not isinstance(index.get("metadata"), dict):
        raise InvalidInput(
            f"{where}: metadata is no object, without which transformers loads nothing; write {{}}"
        )
    found: dict[str, StoredTensor] = {}
    shards = sorted(set(weight_map.values()))
    if SINGLE_FILE in names and shards != [SINGLE_FILE]:
        raise InvalidInput(
            f"{where}: lies beside {SINGLE_FILE}, which transformers loads instead of the shards; "
            "remove the one that is not the model"
        )
    for shard in shards:
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
    for name in checkpoint.beside:
        dtype, shape = checkpoint.tensor_header(name)
        if dtype not in FLOAT_DTYPES or not shape:
            raise InvalidInput(f"{checkpoint.location}: {name} is {dtype} of shape {shape}")
    if extra := set(checkpoint.tensors) - set(expected) - checkpoint.beside:
        raise InvalidInput(
            f"{checkpoint.location}: tensor {min(extra)} does not belong to a "
            f"{checkpoint.config['model_type']} with this config.json"
        )


def _with_its_output(checkpoint: Checkpoint) -> Checkpoint:
    """A tied model that stores its output matrix too, with what transformers makes of the two.

    Where they are equal the embedding is the one that counts; where they differ the model is
    untied, whatever its config says.
    """
    if not checkpoint.shape.tie_word_embeddings:
        return checkpoint
    stored = set(build_of(checkpoint.family).output_weights) & set(checkpoint.tensors)
    tensors = {name: held for name, held in checkpoint.tensors.items() if name not in stored}
    if all(_equal(checkpoint, name, checkpoint.output_name) for name in stored):
        return replace(checkpoint, tensors=tensors)
    _tell_untied(checkpoint.location)
    config = {**checkpoint.config, "tie_word_embeddings": False}
    return replace(checkpoint, config=config, shape=shape_of(config))


@cache
def _tell_untied(location: str) -> None:
    note(
        f"{location}: tie_word_embeddings is true, but an output matrix that differs is stored; "
        "both are kept, as by transformers, and a smaller model is written untied"
    )


def _equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two stored matrices hold the same values; read only as far as they agree."""
    if other not in checkpoint.tensors:
        return True
    (one, shape), (two, expected) = map(checkpoint.tensor_header, (name, other))
    if shape != expected or not {one, two} <= FLOAT_DTYPES.keys():
        return False
    state = json.dumps([checkpoint.location, name, other, checkpoint.state])
    if state not in _EQUAL:
        wide = torch.promote_types(TORCH_DTYPES[one], TORCH_DTYPES[two])
        rows = torch.arange(shape[0]).split(max(1, PIECE_BYTES // (8 * prod(shape[1:]))))
        read = ((checkpoint.rows(each, part).to(wide) for each in (name, other)) for part in rows)
        _EQUAL[state] = all(torch.equal(*pair) for pair in read)
    return _EQUAL[state]
