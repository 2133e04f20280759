"""Plans whose blocks differ, and the dense model with what such a plan cuts silenced."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from bipline.compression.slicing import kept_indices
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import load_model
from bipline.model.shapes import ModelShape
from bipline.values.plan import BlockPlan, Budget, PruningPlan

LAYERS = 5
EARLIER_CODE = Path(__file__).parent / "model" / "earlier_modeling_per_layer.txt"


def plan_of(
    checkpoint: Checkpoint, blocks: list[BlockPlan], layout: str = "per-layer"
) -> PruningPlan:
    """A plan for this model that keeps these groups and channels."""
    return PruningPlan(
        tensor_digest=checkpoint.tensor_digest,
        criterion="random",
        allocation="by hand",
        layout=layout,  # type: ignore[arg-type]
        budget=Budget(asked=0.5, of="blocks", reached_blocks=0.5, reached_total=0.5),
        ffn_multiple=1,
        blocks=tuple(blocks),
    )


def kept(groups: list[int], channels: list[int]) -> BlockPlan:
    """What a block keeps, in any order."""
    return BlockPlan(
        attention_groups=tuple(sorted(set(groups))), ffn_channels=tuple(sorted(set(channels)))
    )


def mixed_blocks(shape: ModelShape, seed: int = 0) -> list[BlockPlan]:
    """Five blocks: without attention, whole, gone, without FFN, and one that is narrow in both.

    The first has no attention, so the KV cache cannot go by the numbers of the blocks.
    """
    draw = random.Random(seed)
    groups, channels = range(shape.num_key_value_heads), range(shape.intermediate_size)
    some = draw.sample(groups, max(1, len(groups) - 1))
    return [
        kept([], draw.sample(channels, 7)),
        kept(list(groups), list(channels)),
        kept([], []),
        kept(some, []),
        kept(draw.sample(groups, 1), draw.sample(channels, 13)),
    ]


@st.composite
def drawn_blocks(draw: Any, shape: ModelShape) -> list[BlockPlan]:
    """Any plan's blocks that leave at least one attention."""
    groups = st.lists(st.integers(0, shape.num_key_value_heads - 1), max_size=6)
    channels = st.lists(st.integers(0, shape.intermediate_size - 1), max_size=12)
    blocks = [kept(draw(groups), draw(channels)) for _ in range(shape.num_hidden_layers)]
    if not any(block.attention_groups for block in blocks):
        index = draw(st.integers(0, len(blocks) - 1))
        blocks[index] = kept([0], list(blocks[index].ffn_channels))
    return blocks


def masked_model(model: Path, checkpoint: Checkpoint, blocks: Sequence[BlockPlan]) -> Any:
    """The dense model in float64 by plain transformers, with what a plan cuts made silent.

    A sublayer of which nothing stays is silent whole, its output bias with it.
    """
    dense = load_model(model, torch.float64)
    with torch.no_grad():
        for layer, block in zip(dense.model.layers, blocks, strict=True):
            rows = kept_indices(block, checkpoint.shape)
            _keep_columns(layer.self_attn.o_proj, rows["query_heads"])
            _keep_columns(layer.mlp.down_proj, rows["ffn_channels"])
    return dense


def _keep_columns(linear: torch.nn.Linear, rows: torch.Tensor) -> None:
    silent = torch.ones(linear.weight.shape[1], dtype=torch.bool)
    silent[rows] = False
    linear.weight[:, silent] = 0
    if not len(rows) and linear.bias is not None:
        linear.bias.zero_()


def listed(model: Path) -> Path:
    """The model as before ``per_layer_config``: its widths in lists, with the code of then."""
    config = json.loads((model / "config.json").read_text())
    blocks = config.pop("per_layer_config")
    ordered = [blocks[place] for place in sorted(blocks, key=int)]
    for size in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        config[f"{size}_per_layer"] = [each[size] for each in ordered]
    (model / "config.json").write_text(json.dumps(config))
    shutil.copy(EARLIER_CODE, model / "modeling_per_layer.py")
    return model
