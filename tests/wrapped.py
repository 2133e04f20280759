"""Tiny random models that hold a decoder beside a vision tower, as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tiny import config_of, tiny_tokenizer

VISION: dict[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    },
    "mistral3": {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "head_dim": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    },
}  # fmt: skip
AROUND: dict[str, dict[str, Any]] = {
    "gemma3": {
        "mm_tokens_per_image": 4, "image_token_index": 95, "boi_token_index": 94,
        "eoi_token_index": 93,
    },
    "mistral3": {"image_token_index": 95, "spatial_merge_size": 1, "tie_word_embeddings": False},
}  # fmt: skip
DECODERS = {"gemma3": "gemma3-text", "mistral3": "mistral-gqa"}
# What the decoder alone has switched on in its case, and does not inside.
OFF: dict[str, dict[str, Any]] = {"gemma3": {"final_logit_softcapping": None}, "mistral3": {}}
# How names begin where transformers writes them, and where they lie in what was published.
WRITTEN, PUBLISHED = "model.language_model.", "language_model.model."


def tiny_wrapped(
    directory: Path, model_type: str = "gemma3", dtype: torch.dtype = torch.float64, **text: Any
) -> Path:
    """Write a random model of a wrapper with every tensor drawn, and a tokenizer beside it."""
    import transformers
    from transformers import AutoConfig

    inside = {**config_of(DECODERS[model_type]), **OFF[model_type], **text}
    around = {**AROUND[model_type], "text_config": inside, "vision_config": VISION[model_type]}
    config = AutoConfig.for_model(model_type, **around)
    torch.manual_seed(0)
    name = f"{model_type.capitalize()}ForConditionalGeneration"
    model = getattr(transformers, name)(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * 0.2
            parameter.copy_(noise + 1 if parameter.dim() == 1 else noise)
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text('{"image_size": 28}\n')
    tiny_tokenizer(directory)
    return directory


def stored_otherwise(directory: Path) -> Path:
    """The same model with its decoder's tensors behind the other prefix that files have."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    here, there = WRITTEN, PUBLISHED
    if any(name.startswith(PUBLISHED) for name in tensors):
        here, there = PUBLISHED, WRITTEN
    heads = {PUBLISHED: "language_model.lm_head.", WRITTEN: "lm_head."}

    def moved(name: str) -> str:
        for old, new in ((here, there), (heads[here], heads[there])):
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name if there == PUBLISHED or name.startswith("lm_head") else f"model.{name}"

    save_file({moved(name): each for name, each in tensors.items()}, file, {"format": "pt"})
    return directory


def edit_config(directory: Path, **changes: Any) -> Path:
    """Change keys of a config.json; None removes one."""
    file = directory / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return directory
