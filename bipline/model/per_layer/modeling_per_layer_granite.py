"""Granite decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import GraniteConfig, GraniteForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerGraniteConfig(PerLayerWidths, GraniteConfig):
    """transformers' GraniteConfig, with the sizes of every block."""

    model_type = "per_layer_granite"


class PerLayerGraniteForCausalLM(GraniteForCausalLM):
    """transformers' GraniteForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerGraniteConfig
    config_class = PerLayerGraniteConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
