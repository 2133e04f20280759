"""OLMo 3 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Olmo3Config, Olmo3ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerOlmo3Config(PerLayerWidths, Olmo3Config):
    """transformers' Olmo3Config, with the sizes of every block."""

    model_type = "per_layer_olmo3"


class PerLayerOlmo3ForCausalLM(Olmo3ForCausalLM):
    """transformers' Olmo3ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerOlmo3Config
    config_class = PerLayerOlmo3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
