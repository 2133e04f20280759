"""GLM decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import GlmConfig, GlmForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerGlmConfig(PerLayerWidths, GlmConfig):
    """transformers' GlmConfig, with the sizes of every block."""

    model_type = "per_layer_glm"


class PerLayerGlmForCausalLM(GlmForCausalLM):
    """transformers' GlmForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerGlmConfig
    config_class = PerLayerGlmConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
