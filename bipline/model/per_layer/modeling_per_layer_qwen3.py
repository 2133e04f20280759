"""Qwen3 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerQwen3Config(PerLayerWidths, Qwen3Config):
    """transformers' Qwen3Config, with the sizes of every block."""

    model_type = "per_layer_qwen3"


class PerLayerQwen3ForCausalLM(Qwen3ForCausalLM):
    """transformers' Qwen3ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerQwen3Config
    config_class = PerLayerQwen3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
