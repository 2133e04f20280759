"""The block loop against transformers' own model, on random weights, before a number counts.

The loop runs transformers' decoder blocks one by one, with what transformers' decoder hands to
them. A family, a version of transformers or a switch of a config.json that does anything else
between them would make every number wrong without a word. So the first loop of a config in a
process compares the logits of a small model with the same config: one block of each kind, narrow,
with every switch and multiplier kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.model.built import build, one_line, saved_tensors
from bipline.model.checkpoint import Checkpoint, tensor_bytes
from bipline.model.families import family_in, tensor_shapes, with_blocks
from bipline.model.module_weights import Place, model_places, module_weights
from bipline.model.safetensors_header import StoredTensor
from bipline.model.shapes import PER_LAYER_LISTS, ModelShape, experts_key, shape_of
from bipline.storage.digests import digest_json
from bipline.storage.folder import LocalFolder

# float32 rounding of the same products in another order; relative to the largest logit.
TOLERANCE = 1e-4
WINDOWS, TOKENS = 2, 12
VOCABULARY, CHANNELS = 32, 24
MOST_GROUPS, MOST_QUERIES, MOST_EXPERTS = 2, 16, 5
# Shorter than the windows, so that what it hides is compared too.
LONGEST_SLIDING = 8
SEED = 7
# Configs that agreed, or are being compared: the small model's own loop must not ask again.
_AGREED: set[str] = set()

Logits = Callable[[Checkpoint, Tensor], Tensor]


def check_agreement(config: Mapping[str, Any], logits: Logits, where: str) -> None:
    """Raise InvalidInput unless ``logits``, by the loop, are those of transformers' model.

    A config that agreed once in this process is not compared again. ``where`` is its file.
    """
    small = narrowed(config)
    key = digest_json(small)
    if key in _AGREED:
        return
    _AGREED.add(key)
    try:
        difference = _difference(small, logits)
    except Exception as error:
        _AGREED.discard(key)
        reason = str(error) if isinstance(error, InvalidInput) else one_line(error)
        raise InvalidInput(
            f"{where}: transformers cannot run a {config['model_type']} with these values: {reason}"
        ) from error
    if not difference <= TOLERANCE:
        _AGREED.discard(key)
        raise InvalidInput(
            f"{where}: run block by block, a {config['model_type']} with these values gives other "
            f"logits than by transformers (by {difference:.1e} of the largest), so it is not "
            "supported"
        )


def narrowed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a small model with one block of each kind; all that is no size is kept."""
    kinds: dict[tuple[Any, ...], int] = {}
    for index in range(shape_of(config).num_hidden_layers):
        kinds.setdefault(_kind(config, index), index)
    shape = shape_of(config)
    groups = min(MOST_GROUPS, shape.num_key_value_heads)
    queries = min(MOST_QUERIES, shape.queries_per_group)
    heads = groups * queries
    # LLaMA's class wants a multiple of the heads, Helium's what they are together.
    fixed = family_in(config).fixes_heads(config)
    width = shape.head_dim if fixed else -(-CHANNELS // heads)
    sizes = {
        "num_key_value_heads": groups, "num_attention_heads": heads, "intermediate_size": CHANNELS,
    }  # fmt: skip
    small: dict[str, Any] = {
        **with_blocks(config, list(kinds.values())), **sizes,
        "hidden_size": heads * width, "head_dim": shape.head_dim,
        "vocab_size": VOCABULARY,
    }  # fmt: skip
    if (family := family_in(config)).ffn_fixed:
        small["intermediate_size"] = family.ffn_times * heads * width
    if (key := experts_key(config)) is not None:
        small |= _few_experts(shape, key)
    if "moe_intermediate_size" in config:
        small["moe_intermediate_size"] = CHANNELS
    for name, listed in PER_LAYER_LISTS.items():
        if small.get(listed):
            small[listed] = [sizes[name] if width else 0 for width in small[listed]]
            small[name] = max(small[listed])
    if small.get("sliding_window"):
        small["sliding_window"] = min(LONGEST_SLIDING, small["sliding_window"])
    if shape.positions:
        small["max_position_embeddings"] = min(TOKENS, small["max_position_embeddings"])
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        small[name] = None if small.get(name) is None else 0
    return small


def _few_experts(shape: ModelShape, key: str) -> dict[str, int]:
    """A few experts, and fewer of them for each token where that is so in the whole model."""
    experts = min(MOST_EXPERTS, shape.num_experts)
    spare = shape.num_experts_per_tok < shape.num_experts
    taken = min(shape.num_experts_per_tok, experts - spare) if experts > 1 else 1
    return {key: experts, "num_experts_per_tok": taken}


def _kind(config: Mapping[str, Any], index: int) -> tuple[Any, ...]:
    """What a block has that another may not: its attention's reach, its sublayers, its experts."""
    listed = family_in(config).block_lists
    kinds = tuple(config[key][index] for key in listed if config.get(key))
    slides = bool(config.get("use_sliding_window")) and index >= config.get("max_window_layers", 0)
    widths = (config.get(each) for each in PER_LAYER_LISTS.values())
    present = tuple(bool(each[index]) for each in widths if each)
    experts = shape_of(config).block(index).num_experts > 0
    return (*(kinds or (slides,)), *present, experts)


@dataclass(frozen=True)
class _Memory:
    """A file that lies in memory."""

    name: str
    data: memoryview
    state: str = ""
    skips_well: bool = True

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def will_read(self, offset: int, length: int) -> None:
        """It lies in memory."""

    def avoid_cache(self) -> None:
        """It lies in memory."""


def _difference(config: Mapping[str, Any], logits: Logits) -> float:
    """How far the two models' logits lie apart, relative to the largest."""
    drawn, token_ids = _drawn(config)
    inside = model_places(family_in(config), config)
    places = {name: inside.get(name, Place(name)) for name in drawn}
    weights = module_weights(places, drawn.items())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = build(config).float().eval()
        for name, held in saved_tensors(model).items():
            held.copy_(weights.pop(name))
        if weights:
            raise ValueError(f"its model has no {min(weights)}")
        expected = model(token_ids).logits
    found = logits(_checkpoint(config), token_ids)
    return float((found - expected).abs().max() / expected.abs().max())


def _drawn(config: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Weights of a size that keeps activations near one, and token ids ``[windows, tokens]``."""
    generator = torch.Generator().manual_seed(SEED)
    shapes = tensor_shapes(family_in(config), config, shape_of(config))
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = noise / shape[1] ** 0.5 if len(shape) > 1 else 1 + noise / 5
    tokens = min(TOKENS, config.get("max_position_embeddings", TOKENS))
    return weights, torch.randint(VOCABULARY, (WINDOWS, tokens), generator=generator)


def _checkpoint(config: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of the drawn weights."""
    weights, _ = _drawn(config)
    stored = {
        name: StoredTensor(
            _Memory(name, tensor_bytes(held)), "F32", tuple(held.shape), 0, held.nbytes
        )
        for name, held in weights.items()
    }
    family, shape = family_in(config), shape_of(config)
    return Checkpoint(LocalFolder(Path("drawn")), dict(config), family, shape, stored)
