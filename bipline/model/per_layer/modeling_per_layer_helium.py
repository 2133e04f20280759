"""Helium decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import HeliumConfig, HeliumForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerHeliumConfig(PerLayerWidths, HeliumConfig):
    """transformers' HeliumConfig, with the sizes of every block."""

    model_type = "per_layer_helium"


class PerLayerHeliumForCausalLM(HeliumForCausalLM):
    """transformers' HeliumForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerHeliumConfig
    config_class = PerLayerHeliumConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
