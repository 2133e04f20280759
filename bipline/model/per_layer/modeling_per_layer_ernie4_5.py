"""Ernie 4.5 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerErnie45Config(PerLayerWidths, Ernie4_5Config):
    """transformers' Ernie4_5Config, with the sizes of every block."""

    model_type = "per_layer_ernie4_5"


class PerLayerErnie45ForCausalLM(Ernie4_5ForCausalLM):
    """transformers' Ernie4_5ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerErnie45Config
    config_class = PerLayerErnie45Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
