"""Gemma 2 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Gemma2Config, Gemma2ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerGemma2Config(PerLayerWidths, Gemma2Config):
    """transformers' Gemma2Config, with the sizes of every block."""

    model_type = "per_layer_gemma2"


class PerLayerGemma2ForCausalLM(Gemma2ForCausalLM):
    """transformers' Gemma2ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerGemma2Config
    config_class = PerLayerGemma2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
