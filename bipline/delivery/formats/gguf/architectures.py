"""Architectures of llama.cpp as data, and which one holds a model.

What llama.cpp calls an architecture is code of its own for each family. The table says what each
one reads; it was found by running llama.cpp on models of every kind (docs/export.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.delivery.formats.interface import Layout
from bipline.model.built import decoder_of
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import Family, family_of, with_blocks
from bipline.model.shapes import PER_LAYER_PREFIX

ATTENTION, OUTPUT, FFN = "attention_input", "attention_output", "mlp"
# A block with attention and without FFN loses its attention in llama.cpp, which also takes the
# size of all heads from the first block: zeros, which add nothing, stand in for what is missing.
ZERO_CHANNELS, ZERO_GROUPS = 8, 1


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp reads under one name.

    ``interleaved``: rotary pairs are neighbouring rows, so query and key rows are put in that
    order. ``biases``: the places where it reads biases. ``rope_factors``: whether it reads a
    tensor of frequency factors. ``any_head_dim``: whether heads need not make up hidden_size.
    ``norms``: the build whose norms it has. ``activation``: the one of its FFN, where that is held
    to. ``all_heads_norms``: whether it norms queries and keys over all heads. ``caps``: it caps the
    scores of attention and scales them by head_dim. ``tied``: whether its output matrix is the
    embedding; None for either.
    """

    name: str
    interleaved: bool
    biases: frozenset[str]
    rope_factors: bool
    any_head_dim: bool = True
    head_norms: bool = False
    per_block: bool = False
    ffn_norm: str = "ffn_norm"
    norms: str = "decoder"
    activation: str = ""
    all_heads_norms: bool = False
    caps: bool = False
    tied: bool | None = None


PLACES = {ATTENTION: "q, k and v", OUTPUT: "o_proj", FFN: "the FFN"}
OTHERWISE = "use the model directory itself, with transformers"
ALL_BIASES = frozenset({ATTENTION, OUTPUT, FFN})
ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("llama", True, ALL_BIASES, rope_factors=True),
        Architecture("qwen2", False, frozenset({ATTENTION}), False, any_head_dim=False),
        Architecture("qwen3", False, frozenset(), False, head_norms=True),
        Architecture(
            "seed_oss", False, frozenset({ATTENTION}), False, ffn_norm="post_attention_norm"
        ),
        Architecture(
            "gemma2",
            False,
            frozenset(),
            False,
            norms="sandwich_norms",
            activation="gelu_pytorch_tanh",
            caps=True,
            tied=True,
        ),
        Architecture(
            "olmo2",
            False,
            frozenset(),
            False,
            norms="post_norms",
            activation="silu",
            all_heads_norms=True,
            tied=False,
        ),
        Architecture("deci", True, ALL_BIASES, rope_factors=True, per_block=True),
    )
}
# By model_type, the first that holds the model is taken.
CANDIDATES = {
    "llama": ("llama",),
    "mistral": ("llama",),
    "qwen2": ("qwen2", "seed_oss", "llama"),
    "qwen3": ("qwen3",),
    "seed_oss": ("seed_oss", "llama"),
    "phi3": ("llama",),
    "gemma2": ("gemma2",),
    "olmo2": ("olmo2",),
}


def architectures_for(model_type: str, per_layer: bool) -> tuple[str, ...]:
    """The architectures that may hold a family's models, the first that does so first."""
    names = CANDIDATES.get(model_type, ())
    family = family_of(model_type)
    held = (*names, "deci") if names and per_layer else names
    return tuple(name for name in held if _norm_obstacle(ARCHITECTURES[name], family) is None)


def architecture_of(checkpoint: Checkpoint) -> tuple[Architecture, Layout]:
    """The architecture that holds a model, and what its reader should know.

    Raises InvalidInput, naming what llama.cpp cannot hold and the nearest choice that works.
    """
    model_type = str(checkpoint.config["model_type"]).removeprefix(PER_LAYER_PREFIX)
    if model_type not in CANDIDATES:
        known = ", ".join(CANDIDATES)
        raise InvalidInput(f"gguf: no architecture is known for {model_type}; known: {known}")
    names = ("deci",) if checkpoint.shape.per_layer else CANDIDATES[model_type]
    reasons: list[str] = []
    for name in names:
        reason = _obstacle(ARCHITECTURES[name], checkpoint)
        if reason is None:
            return ARCHITECTURES[name], Layout(name, tuple(_notes(checkpoint, name, reasons)))
        reasons.append(f"{name} {reason}")
    raise InvalidInput(f"{checkpoint.location}: llama.cpp's {reasons[-1]}")


def _obstacle(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    """What this architecture cannot hold of the model; None where it holds it."""
    shape, family = checkpoint.shape, checkpoint.family
    if (reason := _norm_obstacle(architecture, family)) is not None:
        return reason
    if (reason := _other_obstacle(architecture, checkpoint)) is not None:
        return reason
    divided = shape.num_attention_heads * shape.head_dim == shape.hidden_size
    if not (divided or architecture.any_head_dim):
        return "takes hidden_size / heads for head_dim"
    if odd := family.bias_places(checkpoint.config) - architecture.biases:
        return f"reads no bias at {PLACES[min(odd)]}; {OTHERWISE}"
    return _rope_obstacle(architecture, rope_parameters(checkpoint))


def _norm_obstacle(architecture: Architecture, family: Family) -> str | None:
    """What it has not of a family's norms."""
    if family.build != architecture.norms:
        return "has no norms behind sublayers, which this family has; prune with --layout uniform"
    if family.head_norms and not architecture.head_norms:
        return "has no norms of query and key heads, which Qwen3 has; prune with --layout uniform"
    return None


def _other_obstacle(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    """What it takes as given that a config may say otherwise."""
    shape, config = checkpoint.shape, checkpoint.config
    if architecture.activation not in ("", checkpoint.hidden_act):
        return f"computes {architecture.activation}, not {checkpoint.hidden_act}; {OTHERWISE}"
    if architecture.tied not in (None, shape.tie_word_embeddings):
        has = "no output matrix" if architecture.tied else "an output matrix"
        return f"has {has} beside the embedding; {OTHERWISE}"
    if architecture.all_heads_norms and shape.num_attention_heads * shape.head_dim != (
        shape.hidden_size
    ):
        return f"takes hidden_size for the width of all heads; keep all heads, or {OTHERWISE}"
    if not architecture.caps:
        return None
    if config.get("query_pre_attn_scalar") != shape.head_dim:
        return f"scales attention by head_dim, not query_pre_attn_scalar; {OTHERWISE}"
    if None in (config.get("attn_logit_softcapping"), config.get("final_logit_softcapping")):
        return f"always caps the scores of attention and the logits; {OTHERWISE}"
    return None


def _rope_obstacle(architecture: Architecture, rope: dict[str, Any]) -> str | None:
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"rotates whole heads, not a part of each; {OTHERWISE}"
    if kind not in ("default", "linear", "yarn", "llama3"):
        return f"has no rope scaling of type {kind!r}; {OTHERWISE}"
    if kind == "llama3" and not architecture.rope_factors:
        return f"reads no rope scaling of type 'llama3'; {OTHERWISE}"
    return None


def whole_config(checkpoint: Checkpoint) -> Any:
    """transformers' config of the model, defaults included, however old its config.json."""
    return decoder_of(with_blocks(checkpoint.config, [0])).config


def rope_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Type, theta and whatever else the type needs, under transformers' names."""
    return dict(whole_config(checkpoint).rope_parameters)


def context_length(checkpoint: Checkpoint) -> int:
    """Positions that the file declares: no more than a sliding window attends to."""
    config = whole_config(checkpoint)
    longest = int(config.max_position_embeddings)
    return min(longest, getattr(config, "sliding_window", None) or longest)


def _notes(checkpoint: Checkpoint, name: str, obstacles: list[str]) -> list[str]:
    notes = []
    if obstacles:
        reasons = "; ".join(each.split(";")[0] for each in obstacles)
        notes.append(f"written as {name}, which is the same computation: llama.cpp's {reasons}")
    length = context_length(checkpoint)
    if length < whole_config(checkpoint).max_position_embeddings:
        notes.append(
            f"context of {length} tokens, the sliding window: llama.cpp's {name} does not slide"
        )
    own, widths = own_widths(checkpoint), written_widths(checkpoint)
    for place, what in enumerate((f"{ZERO_GROUPS} attention group", f"{ZERO_CHANNELS} channels")):
        blocks = range(len(own))
        if filled := [str(each) for each in blocks if own[each][place] != widths[each][place]]:
            notes.append(f"{what} of zeros, which add nothing, in blocks {', '.join(filled)}")
    return notes


def own_widths(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Attention groups and FFN channels of every block."""
    shapes = map(checkpoint.shape.block, range(checkpoint.shape.num_hidden_layers))
    return [(shape.num_key_value_heads, shape.intermediate_size) for shape in shapes]


def written_widths(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """The same as the file has them: with zeros where llama.cpp cannot do without."""
    widths = []
    for index, (groups, channels) in enumerate(own_widths(checkpoint)):
        groups = groups or ZERO_GROUPS * (index == 0)
        widths.append((groups, channels or ZERO_CHANNELS * (groups > 0)))
    return widths
