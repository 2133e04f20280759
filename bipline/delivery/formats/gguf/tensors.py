"""Tensors under llama.cpp's names: in its row order, converted and written piece by piece.

Matrices are stored as the type that was asked for, vectors as f32. A matrix whose rows are no
multiple of a quantised type's block is stored as f16, as llama.cpp's own tools do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bipline.base.errors import Refused
from bipline.base.extras import require
from bipline.base.progress import track
from bipline.delivery.formats.gguf.architectures import Architecture
from bipline.delivery.formats.gguf.facts import own_widths, rope_parameters, written_widths
from bipline.delivery.formats.gguf.rearranged import (
    HeldBlock,
    Rearranged,
    lies_otherwise,
    rearranged,
)
from bipline.model.checkpoint import Checkpoint
from bipline.model.experts import without_number

OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wpe": "position_embd",
    "transformer.word_embeddings_layernorm": "token_embd_norm",
}
INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# One matrix of all experts, and what it is called.
STACKED = {
    "mlp.experts.{expert}.gate_proj": "ffn_gate_exps",
    "mlp.experts.{expert}.up_proj": "ffn_up_exps",
    "mlp.experts.{expert}.down_proj": "ffn_down_exps",
}
ROUTER = "ffn_gate_inp"
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
ROPE_FACTORS = "rope_freqs.weight"
# Quantised types store rows in blocks of this many values.
BLOCK_VALUES = 32
LARGEST_F16 = 65504


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name and shape there, and its float values in pieces of rows."""

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[torch.Tensor]]

    def stored_type(self, type_: str) -> Any:
        """Its ``GGMLQuantizationType`` in a file of ``type_``."""
        return stored_type(self.shape, type_, self.name.endswith((f"{ROUTER}.weight", ".bias")))


@dataclass(frozen=True)
class Part:
    """Rows of a stored tensor."""

    name: str
    rows: range


def entries(checkpoint: Checkpoint, architecture: Architecture) -> list[Entry]:
    """All tensors of the file, in its order; no weight is read yet."""
    listed = []
    if (factors := rope_factors(checkpoint)) is not None:
        listed.append(_whole(ROPE_FACTORS, factors))
    called = {name: own for own, name in checkpoint.family.renamed.items()}
    for name, stored in checkpoint.tensors.items():
        module, _, kind = called.get(name, name).rpartition(".")
        if module in OUTSIDE:
            rows = range(stored.shape[0])
            listed.append(_stored(checkpoint, f"{OUTSIDE[module]}.{kind}", [Part(name, rows)]))
    held = HeldBlock(checkpoint)
    for index in range(checkpoint.shape.num_hidden_layers):
        if lies_otherwise(checkpoint):
            listed += _put_in_order(held, architecture, index, called)
        else:
            listed += _of_block(checkpoint, architecture, index, called)
    if checkpoint.family.norm.gain == "one_plus_weight":
        listed = [
            _with_gain(each) if each.name.endswith("norm.weight") else each for each in listed
        ]
    return listed + _zeros(checkpoint)


def _of_block(
    checkpoint: Checkpoint, architecture: Architecture, index: int, called: Mapping[str, str]
) -> list[Entry]:
    """The tensors of a block; ``called`` are names of the build by those of the class."""
    places = checkpoint.rows_inside(index)
    parts: dict[str, list[Part]] = {}
    rotated: set[str] = set()
    for inner, full in checkpoint.block_names(index).items():
        name = called.get(inner, inner)
        target = f"blk.{index}.{_renamed(name, architecture)}"
        rows = range(first := int(places[inner][0]), first + len(places[inner]))
        parts.setdefault(target, []).append(Part(full, rows))
        if architecture.interleaved and name.startswith(ROTATED):
            rotated.add(target)
    return [_stored(checkpoint, target, each, target in rotated) for target, each in parts.items()]


def _put_in_order(
    held: HeldBlock, architecture: Architecture, index: int, called: Mapping[str, str]
) -> list[Entry]:
    """The tensors of a block that lie otherwise than the file has them."""
    parts: dict[str, list[Rearranged]] = {}
    for part in rearranged(held, index):
        name = called.get(part.name, part.name)
        parts.setdefault(f"blk.{index}.{_renamed(name, architecture)}", []).append(part)
    return [_one_after_the_other(target, each) for target, each in parts.items()]


def _one_after_the_other(target: str, parts: list[Rearranged]) -> Entry:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Entry(target, shape, lambda: (part.read() for part in parts))


def _renamed(name: str, architecture: Architecture) -> str:
    """What llama.cpp calls a tensor of a block."""
    if name in architecture.renamed:
        return architecture.renamed[name]
    module, _, kind = name.rpartition(".")
    for target, joined in architecture.joined.items():
        if module in joined:
            return f"{target}.{kind}"
    own = architecture.renamed.get(module)
    return f"{own or INSIDE.get(module) or STACKED[without_number(module)]}.{kind}"


def _with_gain(entry: Entry) -> Entry:
    """A norm's gain in the place of its weight, as llama.cpp multiplies by it."""
    return Entry(entry.name, entry.shape, lambda: (1 + each.float() for each in entry.pieces()))


def _whole(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), lambda: [tensor])


def _stored(checkpoint: Checkpoint, target: str, parts: list[Part], rotated: bool = False) -> Entry:
    """Rows of stored tensors one after the other; one matrix behind another where it is stacked."""
    rest = checkpoint.tensors[parts[0].name].shape[1:]
    counts = [len(part.rows) for part in parts]
    stacked = target.rpartition(".")[0].endswith(tuple(STACKED.values()))
    rows = (len(parts), counts[0]) if stacked else (sum(counts),)

    def pieces() -> Iterator[torch.Tensor]:
        for part in parts:
            read = _read(checkpoint, part)
            if rotated:
                yield interleaved(torch.cat(list(read)), checkpoint.shape.head_dim)
            else:
                yield from read

    return Entry(target, (*rows, *rest), pieces)


def _read(checkpoint: Checkpoint, part: Part) -> Iterator[torch.Tensor]:
    """Rows of a stored tensor; all of them, unless several are stored as one."""
    whole = len(part.rows) == checkpoint.tensors[part.name].shape[0]
    wanted = None if whole else torch.arange(part.rows.start, part.rows.stop)
    return (piece for _, piece in checkpoint.stream([(part.name, wanted)]))


def interleaved(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head so that the two halves of a rotary pair become neighbours."""
    heads = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)


def _zeros(checkpoint: Checkpoint) -> list[Entry]:
    """Sublayers of zeros where llama.cpp cannot do without one."""
    hidden, heads = checkpoint.shape.hidden_size, checkpoint.shape.queries_per_group
    widths = zip(own_widths(checkpoint), written_widths(checkpoint), strict=True)
    listed: dict[str, torch.Tensor] = {}
    for index, ((groups, channels), written) in enumerate(widths):
        values, queries = (n * checkpoint.shape.head_dim for n in (written[0], written[0] * heads))
        if written[0] > groups:
            rows = {"attn_q": queries, "attn_k": values, "attn_v": values}
            listed |= _sublayer(index, "attn_norm", rows, "attn_output", hidden)
        if written[1] > channels:
            rows = {"ffn_gate": written[1], "ffn_up": written[1]}
            listed |= _sublayer(index, "ffn_norm", rows, "ffn_down", hidden)
    return [_whole(name, tensor) for name, tensor in listed.items()]


def _sublayer(
    index: int, norm: str, rows: dict[str, int], output: str, hidden: int
) -> dict[str, torch.Tensor]:
    """A sublayer whose output is zero: what reads has so many rows, what writes as many columns."""
    width = next(iter(rows.values()))
    tensors = {norm: torch.ones(hidden), output: torch.zeros(hidden, width)}
    tensors |= {name: torch.zeros(count, hidden) for name, count in rows.items()}
    return {f"blk.{index}.{name}.weight": tensor for name, tensor in tensors.items()}


def rope_factors(checkpoint: Checkpoint) -> torch.Tensor | None:
    """What llama.cpp divides each rotary frequency by, ``[head_dim / 2]``; None where by nothing.

    The frequencies are transformers' own, so that the factors are right for its formula.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_parameters(checkpoint)
    if rope.get("rope_type") != "llama3":
        return None
    from transformers import LlamaConfig

    head_dim = checkpoint.shape.head_dim
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    powers = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    plain: torch.Tensor = float(rope["rope_theta"]) ** -powers
    return (plain / scaled.double()).float()


def stored_type(shape: tuple[int, ...], type_: str, exact: bool = False) -> Any:
    """The ``GGMLQuantizationType`` of a tensor of this shape in a file of ``type_``.

    ``exact`` ones are stored as vectors are: what a router says decides which experts run, and
    biases of experts are matrices.
    """
    types = require("gguf", "gguf").GGMLQuantizationType
    if len(shape) == 1 or exact:
        return types.F32
    if type_.startswith("q") and shape[-1] % BLOCK_VALUES:
        return types.F16
    return types[type_.upper()]


def stored_bytes(entry: Entry, type_: Any) -> int:
    """The size of a tensor in the file."""
    values, size = require("gguf", "gguf").GGML_QUANT_SIZES[type_]
    count = int(torch.Size(entry.shape).numel())
    return count // int(values) * int(size)


def begin(writer: Any, listed: list[Entry], type_: str) -> dict[str, Any]:
    """Write all that stands before the tensors, with a ``GGUFWriter`` that has its keys.

    Gives each tensor's type by its name; the file is where the first tensor begins.
    """
    types = {entry.name: entry.stored_type(type_) for entry in listed}
    for entry in listed:
        kind = types[entry.name]
        dtype = torch.empty(0).numpy().dtype
        writer.add_tensor_info(entry.name, entry.shape, dtype, stored_bytes(entry, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    return types


def tensor_bytes(writer: Any, listed: list[Entry], type_: str) -> int:
    """What all tensors take in the file, each padded as the writer pads it."""
    sizes = (stored_bytes(entry, entry.stored_type(type_)) for entry in listed)
    return sum(int(writer.ggml_pad(size, writer.data_alignment)) for size in sizes)


def write_tensors(writer: Any, listed: list[Entry], type_: str) -> None:
    """Write header and tensors with a ``GGUFWriter`` that has its keys; one piece is in memory.

    Raises Refused for values that the type cannot hold.
    """
    types = begin(writer, listed, type_)
    (file,) = writer.fout
    for entry in track(listed, f"write {type_} tensors"):
        for piece in entry.pieces():
            converted(piece, types[entry.name], entry.name).tofile(file)
        writer.write_padding(file, stored_bytes(entry, types[entry.name]))
    writer.close()


def converted(piece: torch.Tensor, type_: Any, name: str) -> Any:
    """Rows as the NumPy array that the file holds. Raises Refused for what it cannot hold."""
    values = piece.float()
    largest = float(values.abs().max()) if values.numel() else 0.0
    # Written so that a NaN refuses too. Scales of quantised blocks are f16.
    if not largest < float("inf") or (type_.name not in ("F32", "BF16") and largest > LARGEST_F16):
        raise Refused(
            f"gguf: {name} holds {largest:g}, which {type_.name.lower()} cannot hold; "
            "take --type bf16 or f32, or mend the model"
        )
    return require("gguf.quants", "gguf").quantize(values.numpy(), type_)
