"""An outline of a hub's model: all of it but the weights, so that a request can be checked first.

Of every weight file the header alone is fetched; the file gets its full size without a byte on
disk behind it. What is checked on a model's shape is then checked before gigabytes are
downloaded; nothing may be read from such weights but their header.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.base.extras import require
from bipline.model.checkpoint import Checkpoint
from bipline.model.hub import (
    fetch_files,
    folder_name,
    hub_failures,
    list_model,
    small_files,
    weight_files,
)
from bipline.model.opening import open_checkpoint
from bipline.model.safetensors_header import LENGTH_BYTES, LONGEST_HEADER

# Most headers are shorter than this and come with one request.
FIRST_BYTES = 100_000


def open_outline(repository: str, revision: str) -> Checkpoint:
    """The model of a hub as far as its headers tell; it lies in a folder that goes with it.

    Raises what :func:`bipline.model.hub.download_model` and opening the model raise.
    """
    what, (sizes, commit) = f"hf:{repository}@{revision}", list_model(repository, revision)
    place = Path(tempfile.mkdtemp(prefix="bipline-"))
    try:
        directory = place / folder_name(repository, commit)
        small = small_files(what, sizes)
        with hub_failures(what, "model"):
            fetch_files(repository, commit, directory, small)
            for name in weight_files(sizes):
                header = _header(f"{repository}@{commit}/{name}", sizes[name])
                _write_sparse(directory / name, header, sizes[name])
        checkpoint = open_checkpoint(directory)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    weakref.finalize(checkpoint, shutil.rmtree, place, ignore_errors=True)
    return checkpoint


def _header(path: str, size: int) -> bytes:
    """The bytes of a weight file before its tensors."""
    files = require("huggingface_hub", "hub").HfFileSystem(skip_instance_cache=True)
    with files.open(path, "rb", block_size=FIRST_BYTES) as file:
        first: bytes = file.read(min(FIRST_BYTES, size))
        length = LENGTH_BYTES + int.from_bytes(first[:LENGTH_BYTES], "little")
        if length > min(size, LONGEST_HEADER):
            raise InvalidInput(f"hf:{path}: not a whole safetensors file: the header is too long")
        return (first + file.read(max(0, length - len(first))))[:length]


def _write_sparse(path: Path, header: bytes, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header)
    os.truncate(path, size)
