"""Qwen2 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerQwen2Config(PerLayerWidths, Qwen2Config):
    """transformers' Qwen2Config, with the sizes of every block."""

    model_type = "per_layer_qwen2"


class PerLayerQwen2ForCausalLM(Qwen2ForCausalLM):
    """transformers' Qwen2ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerQwen2Config
    config_class = PerLayerQwen2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
