"""Keys of a GGUF file: sizes, rope, and where the tensors came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bipline.base.errors import Refused
from bipline.base.extras import require
from bipline.delivery.formats.gguf.architectures import Architecture
from bipline.delivery.formats.gguf.facts import (
    SLIDING,
    context_length,
    rope_parameters,
    sliding_blocks,
    sliding_window,
    turned_share,
    whole_config,
    written_widths,
)
from bipline.model.checkpoint import Checkpoint
from bipline.values.export import Origin
from bipline.values.origin import SECTION

FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}


def add_sizes(writer: Any, checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Blocks, widths, heads and norms; a list per size where blocks may differ."""
    shape = checkpoint.shape
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(context_length(checkpoint, architecture))
    writer.add_embedding_length(shape.hidden_size)
    writer.add_vocab_size(shape.vocab_size)
    centred = checkpoint.family.norm.centred
    (writer.add_layer_norm_eps if centred else writer.add_layer_norm_rms_eps)(
        checkpoint.rms_norm_eps
    )
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    widths = written_widths(checkpoint)
    for add, sizes in (
        (writer.add_feed_forward_length, [channels for _, channels in widths]),
        (writer.add_head_count, [groups * shape.queries_per_group for groups, _ in widths]),
        (writer.add_head_count_kv, [groups for groups, _ in widths]),
    ):
        add(sizes if architecture.per_block else sizes[0])


def add_experts(writer: Any, checkpoint: Checkpoint) -> None:
    """How many experts there are and run, and how their outputs are weighed."""
    shape, config = checkpoint.shape, whole_config(checkpoint)
    if not shape.num_experts:
        return
    writer.add_expert_count(shape.num_experts)
    writer.add_expert_used_count(shape.num_experts_per_tok)
    writer.add_expert_feed_forward_length(shape.intermediate_size)
    if not shape.shared_channels:
        return
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_leading_dense_block_count(shape.dense_blocks)
    writer.add_expert_weights_scale(float(config.routed_scaling_factor))
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(require("gguf", "gguf").ExpertGatingFuncType.SIGMOID)


def add_attention(writer: Any, checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Numbers by which things are multiplied or capped, and which blocks slide."""
    config = whole_config(checkpoint)
    for key, name in architecture.numbers.items():
        if (number := getattr(config, key)) is not None:
            writer.add_float32(f"{architecture.name}.{name}", float(number))
    for key in architecture.flags:
        writer.add_bool(f"{architecture.name}.{key}", bool(getattr(config, key)))
    window = sliding_window(checkpoint)
    if architecture.slides and window is not None:
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern(sliding_blocks(checkpoint))


def add_rope(writer: Any, checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Rotary positions; the factors of type llama3 are a tensor of the file."""
    rope = rope_parameters(checkpoint)
    if "rope_theta" not in rope:  # learned positions, or none
        return
    kinds = require("gguf", "gguf").RopeScalingType
    writer.add_rope_dimension_count(round(checkpoint.shape.head_dim * turned_share(checkpoint)))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if architecture.sliding_theta:
        sliding = rope_parameters(checkpoint, SLIDING)
        writer.add_rope_freq_base_swa(float(sliding["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(kinds[kind.upper()])
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings")
        longest = whole_config(checkpoint).max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original or longest))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def add_origin(writer: Any, checkpoint: Checkpoint, origin: Origin, type_: str) -> None:
    """What the file is and where its tensors came from: ``general.*`` and ``bipline.*``."""
    library = require("gguf", "gguf")
    writer.add_type("model")
    writer.add_name(origin.name)
    writer.add_file_type(library.LlamaFileType[FILE_TYPES[type_]])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    parameters = checkpoint.decoder_parameters
    writer.add_size_label(library.size_label(parameters, parameters, 0, 0))
    if origin.licence:
        writer.add_license(origin.licence)
    for name, value in origin.metadata().items():
        writer.add_string(name, value)


def read_origin(file: Path) -> dict[str, str]:
    """What a file's ``bipline.*`` keys tell. Raises Refused for a file that is no GGUF."""
    try:
        fields = require("gguf", "gguf").GGUFReader(file).fields
        told = {name: field.contents() for name, field in fields.items()}
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: not a GGUF file: {error}") from None
    return {name: str(value) for name, value in told.items() if name.startswith(f"{SECTION}.")}
