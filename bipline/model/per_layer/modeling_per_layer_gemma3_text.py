"""Gemma 3 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerGemma3TextConfig(PerLayerWidths, Gemma3TextConfig):
    """transformers' Gemma3TextConfig, with the sizes of every block."""

    model_type = "per_layer_gemma3_text"


class PerLayerGemma3TextForCausalLM(Gemma3ForCausalLM):
    """transformers' Gemma3ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerGemma3TextConfig
    config_class = PerLayerGemma3TextConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
