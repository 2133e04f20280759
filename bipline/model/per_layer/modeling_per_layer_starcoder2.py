"""Starcoder2 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Starcoder2Config, Starcoder2ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerStarcoder2Config(PerLayerWidths, Starcoder2Config):
    """transformers' Starcoder2Config, with the sizes of every block."""

    model_type = "per_layer_starcoder2"


class PerLayerStarcoder2ForCausalLM(Starcoder2ForCausalLM):
    """transformers' Starcoder2ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerStarcoder2Config
    config_class = PerLayerStarcoder2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
