"""A model beside itself with an adapter that is not zero, and with that adapter merged."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bipline.model.loading import load_model
from bipline.recovery.adapter import with_adapter
from bipline.settings.recipes import LoraRecipe
from tests.tiny import token_windows


@torch.no_grad()
def merged_logits(model: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the base, of base and adapter, and of the merged model, in float64."""
    adapted = with_adapter(load_model(model, torch.float64), LoraRecipe(dropout=0.0)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * 0.1)
    base = load_model(model, torch.float64)(token_windows()).logits
    expected = adapted(token_windows()).logits
    return base, expected, adapted.merge_and_unload()(token_windows()).logits
