"""The adapter: put on by peft, merged back, and proven by logits to be what it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.extras import require
from bipline.base.machine import return_freed_memory
from bipline.settings.recipes import BaLoraRecipe, LoraRecipe, Schedule

TARGETS = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj",
    "gate_proj", "up_proj", "gate_up_proj", "down_proj",
    "dense", "c_fc", "c_proj", "fc1", "fc2", "out_proj",
    "query_key_value", "dense_h_to_4h", "dense_4h_to_h", "c_attn",
)  # fmt: skip
# float32 rounding of one merged product against two; relative to the largest logit.
MERGE_TOLERANCE = 1e-4
PROOF_WINDOWS = 4


def in_memory(model: Any) -> Any:
    """The model with weights of its own: those of a file share one mapping, given back as one."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def in_float32(model: Any) -> Any:
    """The model in float32, weight by weight: at no time is more there than the wider model."""
    for parameter in model.parameters():
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
            return_freed_memory()
    return model.float()  # buffers


def prepared(model: Any, recipe: Schedule) -> Any:
    """The model with what is trained: an adapter around it, or all its weights in float32."""
    model.config.use_cache = False
    if not isinstance(recipe, LoraRecipe):
        return in_float32(model).requires_grad_(True)
    return with_adapter(model, recipe)


def with_adapter(model: Any, recipe: LoraRecipe) -> Any:
    """The model with LoRA on every projection; the base stays as it is.

    ``ba-lora`` starts from the weights' principal components (PiSSA), which the base then lacks.
    Raises InvalidInput for a rank that they do not have.
    """
    peft = require("peft", "recover")
    principal = isinstance(recipe, BaLoraRecipe)
    least = min(
        min(module.weight.shape)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TARGETS
    )
    if principal and recipe.rank > least:
        raise InvalidInput(
            f"rank {recipe.rank}: ba-lora starts from principal components, of which the smallest "
            f"projection has {least}; give --rank {least} or less"
        )
    configuration = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
        init_lora_weights="pissa" if principal else True,
    )
    return peft.get_peft_model(model, configuration)


@torch.no_grad()
def merged(adapted: Any, windows: Tensor) -> tuple[dict[str, Tensor], float]:
    """The merged weights in float32, and how far merging moved the logits, of the largest."""
    adapted = in_float32(adapted.to("cpu")).eval()
    windows = windows[:PROOF_WINDOWS]
    expected = adapted(input_ids=windows).logits
    plain = adapted.merge_and_unload() if hasattr(adapted, "merge_and_unload") else adapted
    actual = plain(input_ids=windows).logits
    largest = max(expected.max(), -expected.min())
    # In place: of a large vocabulary, logits are what would not fit beside the weights.
    difference = float(actual.sub_(expected).abs_().max() / largest)
    return plain.state_dict(), difference


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write the adapter as peft does: safetensors and its configuration."""
    adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
