"""Which architecture of llama.cpp holds a model, and what stands in the way of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.delivery.formats.gguf.architectures import (
    Architecture,
    candidates,
    known_families,
)
from bipline.delivery.formats.gguf.facts import (
    FULL,
    SLIDING,
    ZERO_CHANNELS,
    ZERO_GROUPS,
    context_length,
    own_widths,
    rope_parameters,
    sliding_window,
    turned_blocks,
    turned_share,
    whole_config,
    written_widths,
)
from bipline.delivery.formats.interface import Layout
from bipline.model.built import longest_window
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import build_of
from bipline.model.shapes import PER_LAYER_PREFIX

PLACES = {"attention_input": "q, k and v", "attention_output": "o_proj", "mlp": "the FFN"}
OTHERWISE = "use the model directory itself, with transformers"
ROPE_TYPES = ("default", "linear", "yarn", "llama3")


def architecture_of(checkpoint: Checkpoint) -> tuple[Architecture, Layout]:
    """The architecture that holds a model, and what its reader should know.

    Raises InvalidInput, naming what llama.cpp cannot hold and the nearest choice that works.
    """
    reasons: dict[str, str] = {}
    for architecture in _candidates(checkpoint):
        reason = _obstacle(architecture, checkpoint)
        if reason is None:
            others = [text for name, text in reasons.items() if name != architecture.name]
            notes = _notes(checkpoint, architecture, others)
            return architecture, Layout(architecture.name, tuple(notes))
        reasons[architecture.name] = last = f"{architecture.name} {reason}"
    raise InvalidInput(f"{checkpoint.location}: llama.cpp's {last}")


def _candidates(checkpoint: Checkpoint) -> list[Architecture]:
    model_type = str(checkpoint.config["model_type"]).removeprefix(PER_LAYER_PREFIX)
    if model_type not in known_families():
        known = ", ".join(known_families())
        raise InvalidInput(f"gguf: no architecture is known for {model_type}; known: {known}")
    per_layer = checkpoint.shape.per_layer != ()
    found = [each for each in candidates(model_type) if each.per_block == per_layer]
    if not found:
        raise InvalidInput(
            f"{checkpoint.location}: llama.cpp holds no {model_type} whose blocks differ in width; "
            "prune with --layout uniform"
        )
    # Of architectures for one kind of block each, what stands in the way of the right one is told.
    return [each for each in found if each.build in ("", checkpoint.family.build)] or found


def _obstacle(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    """What this architecture cannot hold of the model; None where it holds it."""
    for look in LOOKS:
        if (reason := look(architecture, checkpoint)) is not None:
            return reason
    return None


def _heads(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    shape = checkpoint.shape
    divided = shape.num_attention_heads * shape.head_dim == shape.hidden_size
    if divided or architecture.any_head_dim:
        return None
    return f"takes hidden_size / heads for head_dim; keep all heads, or {OTHERWISE}"


def _biases(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    odd = checkpoint.family.bias_places(checkpoint.config) - architecture.biases
    return f"reads no bias at {PLACES[min(odd)]}; {OTHERWISE}" if odd else None


def _switches(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    """What it takes as given that a config may say otherwise."""
    shape, config = checkpoint.shape, checkpoint.config
    if architecture.build not in ("", checkpoint.family.build):
        return f"has no {build_of(checkpoint.family).kind} blocks; {OTHERWISE}"
    if architecture.activation != checkpoint.hidden_act:
        return f"computes {architecture.activation}, not {checkpoint.hidden_act}; {OTHERWISE}"
    if architecture.tied not in (None, shape.tie_word_embeddings):
        has = "no output matrix" if architecture.tied else "an output matrix"
        return f"has {has} beside the embedding; {OTHERWISE}"
    if (key := architecture.scaled_by_head_dim) and config.get(key) != shape.head_dim:
        return f"scales attention by head_dim, not {key}; {OTHERWISE}"
    for key, value in architecture.required.items():
        if (told := getattr(whole_config(checkpoint), key, None)) != value:
            return f"takes {key} for {_said(value)}, not {_said(told)}; {OTHERWISE}"
    for key in architecture.always:
        if getattr(whole_config(checkpoint), key, None) is None:
            return f"always has {key}, which is null; {OTHERWISE}"
    return None


def _said(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value))


def _rope(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    rope = rope_parameters(checkpoint)
    kind = rope.get("rope_type", "default")
    if kind == "yarn" and rope.get("truncate") is False:
        return f"rounds where YaRN begins and ends, which truncate false does not; {OTHERWISE}"
    if turned_share(checkpoint) != 1.0 and not architecture.partly_turned:
        return f"rotates whole heads, not a part of each; {OTHERWISE}"
    if kind not in ROPE_TYPES:
        return f"has no rope scaling of type {kind!r}; {OTHERWISE}"
    if kind == "llama3" and not architecture.rope_factors:
        return f"reads no rope scaling of type 'llama3'; {OTHERWISE}"
    return None


def _sliding(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    """What it takes as given of blocks that attend to a window alone."""
    if not architecture.slides or sliding_window(checkpoint) is None:
        return None
    count, blocks = checkpoint.shape.num_hidden_layers, architecture.slides_with_blocks
    if blocks and count != blocks:
        return f"slides in models of {blocks} blocks alone, not of {count}; {OTHERWISE}"
    if not checkpoint.family.rope_by_layer_type:
        return None
    whole, sliding = (rope_parameters(checkpoint, each) for each in (FULL, SLIDING))
    if sliding.get("rope_type", "default") != "default":
        return f"scales no positions in blocks that slide; {OTHERWISE}"
    if sliding["rope_theta"] != whole["rope_theta"] and not architecture.sliding_theta:
        return f"turns blocks that slide and others by one rope_theta; {OTHERWISE}"
    return None


def _unturned(architecture: Architecture, checkpoint: Checkpoint) -> str | None:
    """Blocks whose positions do not turn, where their number decides it."""
    every, turned = architecture.unturned_every, turned_blocks(checkpoint)
    expected = [not every or index % every != 0 for index in range(1, len(turned) + 1)]
    if turned != expected:
        return f"turns no positions in each {every}th block and in no other; {OTHERWISE}"
    return None


Look = Callable[[Architecture, Checkpoint], str | None]
LOOKS: tuple[Look, ...] = (_switches, _heads, _biases, _rope, _sliding, _unturned)


def _notes(checkpoint: Checkpoint, architecture: Architecture, obstacles: list[str]) -> list[str]:
    notes, name = [], architecture.name
    if obstacles:
        reasons = "; ".join(each.split(";")[0] for each in obstacles)
        notes.append(f"written as {name}, which is the same computation: llama.cpp's {reasons}")
    length = context_length(checkpoint, architecture)
    if length < longest_window(whole_config(checkpoint)):
        notes.append(
            f"context of {length} tokens, the sliding window: llama.cpp's {name} does not slide"
        )
    own, widths = own_widths(checkpoint), written_widths(checkpoint)
    for place, what in enumerate((f"{ZERO_GROUPS} attention group", f"{ZERO_CHANNELS} channels")):
        blocks = range(len(own))
        if filled := [str(each) for each in blocks if own[each][place] != widths[each][place]]:
            notes.append(f"{what} of zeros, which add nothing, in blocks {', '.join(filled)}")
    return notes
