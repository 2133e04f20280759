"""GLM-4-0414 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Glm4Config, Glm4ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerGlm4Config(PerLayerWidths, Glm4Config):
    """transformers' Glm4Config, with the sizes of every block."""

    model_type = "per_layer_glm4"


class PerLayerGlm4ForCausalLM(Glm4ForCausalLM):
    """transformers' Glm4ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerGlm4Config
    config_class = PerLayerGlm4Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
