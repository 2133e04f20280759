"""Tensors under llama.cpp's names: in its row order, converted and written piece by piece.

Matrices are stored as the type that was asked for, vectors as f32. A matrix whose rows are no
multiple of a quantised type's block is stored as f16, as llama.cpp's own tools do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bipline.base.errors import Refused
from bipline.base.extras import require
from bipline.base.progress import track
from bipline.delivery.formats.gguf.architectures import (
    Architecture,
    own_widths,
    rope_parameters,
    written_widths,
)
from bipline.model.checkpoint import Checkpoint

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
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
    "input_layernorm": "attn_norm",
}
# The norms of a build that has some behind sublayers.
BEHIND = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
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


def entries(checkpoint: Checkpoint, architecture: Architecture) -> list[Entry]:
    """All tensors of the file, in its order; no weight is read yet."""
    listed = []
    if (factors := rope_factors(checkpoint)) is not None:
        listed.append(_whole(ROPE_FACTORS, factors))
    for name, renamed in OUTSIDE.items():
        if name in checkpoint.tensors:
            rows = range(checkpoint.tensors[name].shape[0])
            listed.append(_stored(checkpoint, name, renamed, rows))
    for index in range(checkpoint.shape.num_hidden_layers):
        firsts, counts = checkpoint.block_firsts(index), checkpoint.block_rows(index)
        for inner, full in checkpoint.block_names(index).items():
            renamed = f"blk.{index}.{_renamed(inner, architecture)}"
            rotated = architecture.interleaved and inner.startswith(ROTATED)
            rows = range(firsts[inner], firsts[inner] + counts[inner])
            listed.append(_stored(checkpoint, full, renamed, rows, rotated))
    if checkpoint.family.norm.gain == "one_plus_weight":
        listed = [
            _with_gain(each) if each.name.endswith("norm.weight") else each for each in listed
        ]
    return listed + _zeros(checkpoint, architecture)


def _renamed(inner: str, architecture: Architecture) -> str:
    module, _, kind = inner.rpartition(".")
    if architecture.norms != "decoder" and module in BEHIND:
        return f"{BEHIND[module]}.{kind}"
    return f"{INSIDE.get(module, architecture.ffn_norm)}.{kind}"


def _with_gain(entry: Entry) -> Entry:
    """A norm's gain in the place of its weight, as llama.cpp multiplies by it."""
    return Entry(entry.name, entry.shape, lambda: (1 + each.float() for each in entry.pieces()))


def _whole(name: str, tensor: torch.Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), lambda: [tensor])


def _stored(
    checkpoint: Checkpoint, name: str, renamed: str, rows: range, rotated: bool = False
) -> Entry:
    """Rows of a stored tensor; all of them, unless several are stored as one."""
    count, *rest = checkpoint.tensors[name].shape

    def pieces() -> Iterator[torch.Tensor]:
        wanted = None if len(rows) == count else torch.arange(rows.start, rows.stop)
        read = (piece for _, piece in checkpoint.stream([(name, wanted)]))
        if rotated:
            yield interleaved(torch.cat(list(read)), checkpoint.shape.head_dim)
        else:
            yield from read

    return Entry(renamed, (len(rows), *rest), pieces)


def interleaved(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head so that the two halves of a rotary pair become neighbours."""
    heads = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)


def _zeros(checkpoint: Checkpoint, architecture: Architecture) -> list[Entry]:
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
            listed |= _sublayer(index, architecture.ffn_norm, rows, "ffn_down", hidden)
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


def stored_type(shape: tuple[int, ...], type_: str) -> Any:
    """The ``GGMLQuantizationType`` of a tensor of this shape in a file of ``type_``."""
    types = require("gguf", "gguf").GGMLQuantizationType
    if len(shape) == 1:
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
    types = {entry.name: stored_type(entry.shape, type_) for entry in listed}
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
    sizes = (stored_bytes(entry, stored_type(entry.shape, type_)) for entry in listed)
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
