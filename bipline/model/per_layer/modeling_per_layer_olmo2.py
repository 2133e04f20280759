"""OLMo 2 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Olmo2Config, Olmo2ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerOlmo2Config(PerLayerWidths, Olmo2Config):
    """transformers' Olmo2Config, with the sizes of every block."""

    model_type = "per_layer_olmo2"


class PerLayerOlmo2ForCausalLM(Olmo2ForCausalLM):
    """transformers' Olmo2ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerOlmo2Config
    config_class = PerLayerOlmo2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
