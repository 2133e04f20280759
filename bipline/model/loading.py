"""A whole model in memory, by plain transformers: for zero-shot tasks, speed, recovery, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bipline.artifacts.errors import InvalidInput


def import_libraries() -> None:
    """Import what transformers loads on first use, so that no stage's seconds hold it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for lazy in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        _ = lazy.__name__
    from transformers.models.llama import modeling_llama  # noqa: F401


def load_model(directory: Path, dtype: torch.dtype) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` with no code from the model, in eval mode.

    Raises InvalidInput when transformers reports weights that are missing, unexpected or of
    another shape: a model that loads with fresh random weights must never be measured.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
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
