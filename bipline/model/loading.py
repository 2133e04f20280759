"""transformers' model of a checkpoint: whole in memory, or without weights for the block loop.

Whole models are for zero-shot tasks, speed, recovery and export. A per-layer model is built by
our own installed class; the code beside its weights is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.model.opening import read_config
from bipline.model.per_layer.shipping import own_class
from bipline.model.shapes import is_per_layer


def import_libraries() -> None:
    """Import what transformers loads on first use, so that no stage's seconds hold it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for lazy in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        _ = lazy.__name__
    from transformers.models.llama import modeling_llama  # noqa: F401


def model_class(config: Mapping[str, Any]) -> Any:
    """What builds a model with this config: transformers' Auto class, or our own class."""
    if not is_per_layer(config):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM
    return own_class(str(config["model_type"]))


def load_model(directory: Path, dtype: torch.dtype) -> Any:
    """``from_pretrained`` with no code from the model, in eval mode.

    The model's own settings for generating are not read: nothing we measure may follow them.

    Raises InvalidInput when transformers reports weights that are missing, unexpected or of
    another shape: a model that loads with fresh random weights must never be measured.
    """
    from transformers import GenerationConfig

    loaded: Any = model_class(read_config(directory)).from_pretrained(
        directory,
        generation_config=GenerationConfig(),
        dtype=dtype,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, report = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            first = min(str(key) for key in report[kind])
            raise InvalidInput(f"{directory}: {kind.replace('_', ' ')} on loading: {first}")
    return model.eval()


def decoder_of(config: Mapping[str, Any]) -> Any:
    """The decoder of a model with this config and no weights (meta tensors)."""
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    model_type, built_by = values.pop("model_type"), model_class(config)
    if is_per_layer(config):
        made, make = built_by.config_class(**values), built_by._from_config
    else:
        made, make = AutoConfig.for_model(model_type, **values), built_by.from_config
    with torch.device("meta"):
        return make(made, attn_implementation="sdpa").model
