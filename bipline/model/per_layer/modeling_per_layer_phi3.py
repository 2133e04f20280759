"""Phi-3 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Phi3Config, Phi3ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerPhi3Config(PerLayerWidths, Phi3Config):
    """transformers' Phi3Config, with the sizes of every block."""

    model_type = "per_layer_phi3"


class PerLayerPhi3ForCausalLM(Phi3ForCausalLM):
    """transformers' Phi3ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerPhi3Config
    config_class = PerLayerPhi3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
