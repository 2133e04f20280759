"""The adapter: put on by peft, merged back, and proven by logits to be what it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    """The model with LoRA on every projection; the base stays as it is, experts among it.

    ``ba-lora`` starts from the weights' principal components (PiSSA), which the base then lacks.
    Raises InvalidInput for a rank that they do not have.
    """
    peft = require("peft", "recover")
    principal = isinstance(recipe, BaLoraRecipe)
    targets = {
        name: module for name, module in model.named_modules() if name.rpartition(".")[2] in TARGETS
    }
    least = min(min(module.weight.shape) for module in targets.values())
    if principal and recipe.rank > least:
        raise InvalidInput(
            f"rank {recipe.rank}: ba-lora starts from principal components, of which the smallest "
            f"projection has {least}; give --rank {least} or less"
        )
    configuration = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        # Those that are there: by another name peft would look for experts where this is loaded.
        target_modules=sorted({name.rpartition(".")[2] for name in targets}),
        task_type="CAUSAL_LM",
        init_lora_weights="pissa" if principal else True,
    )
    with _of_no_kind(model.config):
        return peft.get_peft_model(model, configuration)


@contextmanager
def _of_no_kind(config: Any) -> Iterator[None]:
    """A config without its model_type.

    By that peft takes ``gate_proj`` and its like in a mixture for the experts, whose names those
    were before transformers 5, and never finds what lies beside them.
    """
    config.model_type = ""
    try:
        yield
    finally:
        del config.model_type


@torch.no_grad()
def merged(adapted: Any, windows: Tensor, routed: bool = False) -> tuple[dict[str, Tensor], float]:
    """The trained weights, merged, in float32, and how far merging moved the logits.

    That is told as a share of the largest: of the token that was moved the most, but of a mixture's
    (``routed``) the median token, as rounding may send one to another expert.
    """
    adapted = in_float32(adapted.to("cpu")).eval()
    windows = windows[:PROOF_WINDOWS]
    expected = adapted(input_ids=windows).logits
    trained = _trained_names(adapted)
    plain = adapted.merge_and_unload() if hasattr(adapted, "merge_and_unload") else adapted
    actual = plain(input_ids=windows).logits
    largest = max(expected.max(), -expected.min())
    # In place: of a large vocabulary, logits are what would not fit beside the weights.
    moved = actual.sub_(expected).abs_().amax(-1)
    difference = float((moved.median() if routed else moved.max()) / largest)
    held = plain.state_dict()
    return {name: held[name] for name in (held if trained is None else trained)}, difference


def _trained_names(adapted: Any) -> list[str] | None:
    """The weights of a plain model that an adapter changes; None where all are trained."""
    if not hasattr(adapted, "merge_and_unload"):
        return None
    return [f"{name}.weight" for name in adapted.base_model.targeted_module_names]


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write the adapter as peft does: safetensors and its configuration."""
    adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
