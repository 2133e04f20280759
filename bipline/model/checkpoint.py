"""A checkpoint: the tensors of an opened model, read lazily and by ranges.

A tensor is read into memory of its own or of the caller, never mapped: what is resident is what
is held, and a limit on memory holds. Its digest is taken on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput, Refused
from bipline.model.families import (
    Family,
    ModelShape,
    block_axes,
    block_lying,
    block_parts,
    build_of,
)
from bipline.model.finite import refuse_not_finite
from bipline.model.fused import part_rows, split
from bipline.model.module_weights import Place, block_places, model_places, module_weights
from bipline.model.naming import Naming
from bipline.model.rows import inside, runs, tensor_bytes
from bipline.model.safetensors_header import StoredTensor
from bipline.model.tensor_digests import RunningDigest, TensorDigests
from bipline.model.wrappers import Nesting
from bipline.storage.ahead import ahead
from bipline.storage.digests import CHUNK_BYTES, digest_json, digest_listing
from bipline.storage.folder import ByteFile, Folder, LocalFolder

# Pieces of this size come from memory that the allocator keeps, and are never page-faulted anew.
PIECE_BYTES = 16 << 20
PIECES_AHEAD = 4
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# transformers' own, where a config does not say.
DEFAULT_EPS = 1e-6
DEFAULT_ACT = "silu"
FLOAT_DTYPES = {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """An opened model. ``tensors`` says where every tensor lies, by its full name.

    ``config`` is that of the class it is run by, ``family`` that of what is stored. Of a decoder
    that lies in another model both are its own, as are its tensors' names; ``nesting`` is what lies
    around it.
    """

    folder: Folder
    config: dict[str, Any]
    family: Family
    shape: ModelShape
    tensors: dict[str, StoredTensor] = field(repr=False)
    expected_digest: str | None = None
    digests: TensorDigests = field(default_factory=TensorDigests, repr=False)
    nesting: Nesting | None = field(default=None, repr=False)
    naming: Naming = field(default_factory=Naming, repr=False)

    @property
    def beside(self) -> frozenset[str]:
        """The tensors that are none of the decoder's: those of the model that it lies in."""
        return self.nesting.beside if self.nesting else frozenset()

    def stored_name(self, name: str) -> str:
        """The name of a tensor, or of one as this model would have it, where it lies."""
        return (self.nesting or self.naming).stored_name(name)

    def whole_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config.json of this model with another config in the place of its own."""
        return self.nesting.whole_config(config) if self.nesting else config

    @property
    def location(self) -> str:
        """Where the model lies, as the user would write it."""
        return self.folder.location

    @property
    def directory(self) -> Path:
        """The model's local directory. Raises InvalidInput when it does not lie on this machine."""
        if isinstance(self.folder, LocalFolder):
            return self.folder.path
        raise InvalidInput(f"{self.location}: this needs the model in a local directory")

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in its own dtype, read whole into fresh memory."""
        stored = self.tensors[name]
        tensor = torch.empty(stored.shape, dtype=TORCH_DTYPES[stored.dtype])
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Read a tensor into a contiguous one of the same dtype, hashing what was not hashed yet.

        Raises InvalidInput where the bytes are not those that were expected, or are no numbers.
        """
        stored, data = self.tensors[name], tensor_bytes(target)
        running = RunningDigest(name not in self.digests.known)
        for start in range(0, len(data), CHUNK_BYTES):
            piece = data[start : start + CHUNK_BYTES]
            stored.file.read_into(piece, stored.offset + start)
            running.update(piece)
        self._record(name, running)
        refuse_not_finite(target, name, self.location)

    def will_read(self, name: str) -> None:
        """Say that a tensor will be read soon, so that the disk may be busy with it already."""
        stored = self.tensors[name]
        stored.file.will_read(stored.offset, stored.num_bytes)

    def rows(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Rows of a matrix by distinct ascending indices; neighbours are read together."""
        stored = self.tensors[name]
        shape = (len(indices), *stored.shape[1:])
        rows = torch.empty(shape, dtype=TORCH_DTYPES[stored.dtype])
        width = stored.num_bytes // max(1, stored.shape[0])
        data = tensor_bytes(rows)
        for first, last, index in runs(indices.tolist()):
            stored.file.read_into(data[first * width : last * width], stored.offset + index * width)
        refuse_not_finite(rows, name, self.location)
        return rows

    def stream(
        self, wanted: Iterable[tuple[str, torch.Tensor | None]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors one after the other, in pieces of whole rows, read ahead by a thread.

        With each name come the rows to keep (ascending), or None for all. Rows that go are read
        too where the tensor's digest is not known yet, or where leaving them out would not be
        quicker. A tensor's digest is known when the piece after its last one is taken. A name may
        come again, with other rows.
        """
        running, current = RunningDigest(False), ""
        with ahead(self._read(wanted), PIECES_AHEAD) as pieces:
            for name, kept, first, piece in pieces:
                if name != current or first == 0:
                    self._record(current, running)
                    running, current = RunningDigest(name not in self.digests.known), name
                if first is None:
                    yield name, piece
                    continue
                running.update(tensor_bytes(piece))
                held = inside(kept, first, len(piece))
                if held is None or len(held):
                    yield name, piece if held is None else piece.index_select(0, held)
            self._record(current, running)

    def _read(
        self, wanted: Iterable[tuple[str, torch.Tensor | None]]
    ) -> Iterator[tuple[str, torch.Tensor | None, int | None, torch.Tensor]]:
        """Pieces with the row they begin at; None where a piece holds kept rows and no others."""
        for name, kept in wanted:
            stored = self.tensors[name]
            step = max(1, PIECE_BYTES // max(1, stored.num_bytes // max(1, stored.shape[0])))
            if kept is not None and name in self.digests.known and stored.file.skips_well:
                for part in kept.split(step):
                    yield name, kept, None, self.rows(name, part)
                continue
            for first in range(0, stored.shape[0], step):
                rows = torch.arange(first, min(stored.shape[0], first + step))
                yield name, kept, first, self.rows(name, rows)

    @property
    def rms_norm_eps(self) -> float:
        """What a norm adds to a mean square."""
        eps = self.family.norm.eps
        return eps if isinstance(eps, float) else float(self.config.get(eps, DEFAULT_EPS))

    @property
    def multipliers(self) -> dict[str, float]:
        """By what a block's output matrices are multiplied, by their names; empty for by one.

        A family whose sublayers add a multiple m (W x) is run, scored and compensated as one that
        adds (m W) x; only its files have W.
        """
        factor = float(self.config.get(self.family.output_multiplier, 1.0))
        names = build_of(self.family).outputs.values()
        return {name: factor for held in names for name in held} if factor != 1 else {}

    @property
    def hidden_act(self) -> str:
        """transformers' name of the activation between gate_proj and the product with up_proj."""
        return str(self.config.get(self.family.activation, DEFAULT_ACT))

    def tensor_header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The safetensors dtype (``BF16``, ...) and the shape of a tensor."""
        return self.tensors[name].dtype, self.tensors[name].shape

    def block_prefix(self, index: int) -> str:
        """What the full names of a block's tensors begin with."""
        return build_of(self.family).block_prefix.format(index=index)

    def stored_names(self, index: int) -> dict[str, str]:
        """Full names of what is stored of a block by their names inside it."""
        prefix = self.block_prefix(index)
        return {name: prefix + name for name in block_parts(self.family, self.config, index)}

    def block_names(self, index: int) -> dict[str, str]:
        """In which stored tensor each tensor of a block lies, by its name inside it."""
        prefix, parts = self.block_prefix(index), block_parts(self.family, self.config, index)
        return {name: prefix + stored for stored, each in parts.items() for name in each}

    def block_rows(self, index: int) -> dict[str, int]:
        """How many rows, or entries, each tensor of a block has."""
        shape = self.shape.block(index)
        axes = block_axes(self.family, self.config, index)
        return {name: shape.axis_size(first) for name, (first, *_) in axes.items()}

    def rows_inside(self, index: int) -> dict[str, torch.Tensor]:
        """In which rows of what is stored each tensor of a block lies: columns, if transposed."""
        rows, lying = self.block_rows(index), block_lying(self.family, self.config, index)
        found: dict[str, torch.Tensor] = {}
        for name, parts in block_parts(self.family, self.config, index).items():
            places = part_rows([rows[part] for part in parts], lying.groups_of(name))
            found.update(zip(parts, places, strict=True))
        return found

    def split(self, index: int, held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A block's tensors by their names inside it, as rows of those that its class takes."""
        parts = block_parts(self.family, self.config, index)
        fused = {name: held[name] for name in held if parts.get(name, (name,)) != (name,)}
        others = {name: tensor for name, tensor in held.items() if name not in fused}
        lying = block_lying(self.family, self.config, index)
        return others | split(fused, parts, self.block_rows(index), lying)

    def block_places(self, index: int) -> dict[str, Place]:
        """Where what is stored of a block, by its name inside it, goes in what its class takes."""
        return block_places(self.family, self.config, index)

    @property
    def places(self) -> dict[str, Place]:
        """Where its decoder's tensors go in those of transformers' model, by full names."""
        inside = model_places(self.family, self.config)
        held = (name for name in self.tensors if name not in self.beside)
        return {name: inside.get(name, Place(name)) for name in held}

    def block_weights(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of one block by their names inside it, in the source's dtype.

        Those of all experts are one tensor, as their class takes them.
        Matrices with a multiplier come multiplied, in at least float32.
        """
        stored = ((name, self.tensor(full)) for name, full in self.stored_names(index).items())
        held = self.split(index, module_weights(self.block_places(index), stored))
        scaled = {name: m for name, m in self.multipliers.items() if name in held}
        return {**held, **{name: widened(held[name]) * m for name, m in scaled.items()}}

    @property
    def output_name(self) -> str:
        """The tensor that turns hidden states into logits."""
        build = build_of(self.family)
        [output] = build.output_weights
        return build.embedding if self.shape.tie_word_embeddings else output

    @property
    def parameters(self) -> int:
        """The number of stored parameters (a tied embedding counts once)."""
        return sum(stored.elements for stored in self.tensors.values())

    @property
    def decoder_parameters(self) -> int:
        """The same without those of the model that the decoder lies in."""
        held = self.tensors.items()
        return sum(stored.elements for name, stored in held if name not in self.beside)

    @property
    def layout_digest(self) -> str:
        """What can be known of the model without reading its weights: config, names and shapes."""
        tensors = {self.stored_name(n): [t.dtype, t.shape] for n, t in self.tensors.items()}
        return digest_json({"config": self.whole_config(self.config), "tensors": tensors})

    @property
    def files(self) -> dict[str, ByteFile]:
        """The weight shards by name."""
        return {stored.file.name: stored.file for stored in self.tensors.values()}

    @property
    def weight_bytes(self) -> int:
        """Size of the weight shards on disk, in bytes."""
        return sum(file.size for file in self.files.values())

    @property
    def state(self) -> dict[str, str]:
        """What the place says of every shard's version: cheap, and no proof of equal content."""
        return {name: file.state for name, file in sorted(self.files.items())}

    @cached_property
    def tensor_digest(self) -> str:
        """The identity of the model: names, dtypes, shapes and bytes of its tensors.

        It does not depend on where the model lies or how the tensors are sharded. Only tensors
        that were not read whole before are read for it.
        Raises Refused when it is not the digest that was expected (see :func:`open_checkpoint`).
        """
        digest = digest_listing({self.stored_name(n): self.digest_tensor(n) for n in self.tensors})
        self._hold_to_expected(digest)
        return digest

    @property
    def claimed_digest(self) -> str:
        """:attr:`tensor_digest`, with the expected digest of tensors that were not read yet.

        Whoever reads those tensors later has them compared.
        """
        expected, known = self.digests.expected, self.digests.known
        held = {n: known.get(n) or expected.get(n) or self.digest_tensor(n) for n in self.tensors}
        digest = digest_listing({self.stored_name(name): each for name, each in held.items()})
        self._hold_to_expected(digest)
        return digest

    def _hold_to_expected(self, digest: str) -> None:
        if self.expected_digest not in (None, digest):
            raise Refused(
                f"{self.location}: its weights changed while the run was going on; run again"
            )

    def digest_tensor(self, name: str) -> str:
        """The digest of one tensor, read in pieces unless it is known."""
        if name not in self.digests.known:
            stored, running = self.tensors[name], RunningDigest(True)
            buffer = memoryview(bytearray(min(CHUNK_BYTES, stored.num_bytes)))
            for start in range(0, stored.num_bytes, CHUNK_BYTES):
                piece = buffer[: stored.num_bytes - start]
                stored.file.read_into(piece, stored.offset + start)
                running.update(piece)
            self._record(name, running)
        return self.digests.known[name]

    def _record(self, name: str, running: RunningDigest) -> None:
        if (content := running.content()) is not None:
            self.digests.add(name, self.tensors[name], content)


def widened(values: torch.Tensor) -> torch.Tensor:
    """At least float32: products of bfloat16 values would be rounded before they count."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
