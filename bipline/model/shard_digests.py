"""Digests of whole shards and of the tensors in them, from one reading of every byte.

A file's sha256 says whether a download is whole; a tensor's says what the model is, however it is
sharded. Both are needed of every release, and reading twice would take twice as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bipline.model.checkpoint import Checkpoint
from bipline.model.safetensors_header import StoredTensor
from bipline.model.tensor_digests import RunningDigest
from bipline.storage.digests import CHUNK_BYTES
from bipline.storage.folder import ByteFile

Range = tuple[int, int, str | None]


def digest_shards(checkpoint: Checkpoint) -> dict[str, str]:
    """The sha256 of every weight file by name; the tensors' digests are known afterwards."""
    return {name: _digest_shard(checkpoint, file) for name, file in checkpoint.files.items()}


def _digest_shard(checkpoint: Checkpoint, file: ByteFile) -> str:
    whole = hashlib.sha256()
    tensors = {n: held for n, held in checkpoint.tensors.items() if held.file.name == file.name}
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with ThreadPoolExecutor(1) as beside:
        for start, end, name in _ranges(tensors, file.size):
            running = RunningDigest(name is not None)
            for place in range(start, end, CHUNK_BYTES):
                piece = buffer[: end - place]
                file.read_into(piece, place)
                hashed = beside.submit(whole.update, piece)
                running.update(piece)
                hashed.result()
            if name is not None:
                checkpoint.digests.add(name, tensors[name], running.content() or "")
    return whole.hexdigest()


def _ranges(tensors: dict[str, StoredTensor], size: int) -> Iterator[Range]:
    """The whole file in order: tensors by name, and what belongs to none of them."""
    place = 0
    for name, held in sorted(tensors.items(), key=lambda item: item[1].offset):
        if held.offset > place:
            yield place, held.offset, None
        yield held.offset, held.offset + held.num_bytes, name
        place = held.offset + held.num_bytes
    if place < size:
        yield place, size, None
