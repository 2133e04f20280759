"""Hidden states of all windows between two blocks, in chunks: in memory, on disk, or both.

Running a block replaces every chunk. With a folder, each generation (the inputs of block i) is
a file of its own, written beside the one before it and renamed when it is whole: that is how
hidden states larger than memory are spilled, and it is also the checkpoint a killed run goes on
from. Two generations are kept, so that a damaged newest one costs one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from bipline.base.errors import Refused
from bipline.model.checkpoint import tensor_bytes
from bipline.storage.digests import digest_file
from bipline.storage.folder import LocalFile

# Windows per chunk: partial sums are taken over chunks of this many windows, in order, so that
# a sum is the same however the work is divided.
CHUNK_WINDOWS = 16
KEPT_GENERATIONS = 2


@dataclass(frozen=True)
class StatesShape:
    """Windows, their length and the hidden size; and the dtype the states are kept in."""

    windows: int
    seqlen: int
    hidden_size: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of one generation in bytes."""
        return self.windows * self.seqlen * self.hidden_size * self.dtype.itemsize

    @property
    def chunks(self) -> int:
        """The number of chunks; the last one may be shorter."""
        return -(-self.windows // CHUNK_WINDOWS)

    def chunk_shape(self, number: int) -> tuple[int, int, int]:
        """The shape of one chunk: ``[windows, seqlen, hidden_size]``."""
        left = self.windows - number * CHUNK_WINDOWS
        return min(CHUNK_WINDOWS, left), self.seqlen, self.hidden_size


class HiddenStates:
    """The states before block ``generation``. ``folder`` is where generations are written."""

    def __init__(self, shape: StatesShape, folder: Path | None, resident: bool = True) -> None:
        if folder is None and not resident:
            raise ValueError("states that are not kept in memory need a folder")
        self.shape = shape
        self.folder = folder
        self.generation = -1
        self.digest = ""
        self._resident: list[Tensor] | None = [] if resident else None

    def fill(self, produce: Callable[[int], Tensor]) -> None:
        """Make the first generation: ``produce`` gives each chunk by its number."""
        if self._resident is not None:
            self._resident = []
        self._replace(0, produce)

    def advance(self, step: Callable[[int, Tensor], Tensor]) -> None:
        """Replace every chunk by what ``step`` makes of it, in order: the next generation."""
        self._replace(self.generation + 1, lambda number: step(number, self.chunk(number)))

    def chunk(self, number: int) -> Tensor:
        """One chunk on the CPU: ``[windows, seqlen, hidden_size]``."""
        if self._resident is not None:
            return self._resident[number]
        return self._read(number)

    def resume(self, generation: int, digest: str) -> None:
        """Take up a generation that an earlier run wrote.

        Raises Refused when its file is missing or its bytes are not the recorded ones.
        """
        path = self._path(generation)
        if not path.is_file() or digest_file(path) != digest:
            raise Refused(f"{path}: is missing or damaged")
        self.generation, self.digest = generation, digest
        if self._resident is not None:
            self._resident = [self._read(number) for number in range(self.shape.chunks)]

    def _replace(self, generation: int, produce: Callable[[int], Tensor]) -> None:
        with self._writing(generation) as write:
            for number in range(self.shape.chunks):
                chunk = produce(number).to("cpu", self.shape.dtype)
                write(chunk)
                if self._resident is None:
                    continue
                if generation == 0:
                    self._resident.append(chunk)
                else:
                    self._resident[number] = chunk
        self.generation = generation
        self._forget(generation - KEPT_GENERATIONS)

    @contextmanager
    def _writing(self, generation: int) -> Iterator[Callable[[Tensor], None]]:
        """A function that takes each chunk in turn; afterwards the file has its final name."""
        if self.folder is None:
            yield lambda chunk: None
            return
        final = self._path(generation)
        temporary = final.with_suffix(".partial")
        sha256 = hashlib.sha256()
        with temporary.open("wb") as file:
            yield lambda chunk: _write(file, tensor_bytes(chunk), sha256)
        temporary.replace(final)
        self.digest = sha256.hexdigest()

    def _read(self, number: int) -> Tensor:
        chunk = torch.empty(self.shape.chunk_shape(number), dtype=self.shape.dtype)
        whole = CHUNK_WINDOWS * self.shape.seqlen * self.shape.hidden_size
        offset = number * whole * self.shape.dtype.itemsize
        LocalFile(self._path(self.generation)).read_into(tensor_bytes(chunk), offset)
        return chunk

    def _forget(self, generation: int) -> None:
        if self.folder is not None and generation >= 0:
            self._path(generation).unlink(missing_ok=True)

    def _path(self, generation: int) -> Path:
        if self.folder is None:
            raise ValueError("these states have no folder")
        return self.folder / f"states-{generation:04d}.bin"


def _write(file: BinaryIO, data: memoryview, sha256: hashlib._Hash) -> None:
    file.write(data)
    sha256.update(data)
