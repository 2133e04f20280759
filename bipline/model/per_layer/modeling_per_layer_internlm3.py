"""InternLM3 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import InternLM3Config, LlamaForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerInternLM3Config(PerLayerWidths, InternLM3Config):
    """transformers' InternLM3Config, with the sizes of every block."""

    model_type = "per_layer_internlm3"


class PerLayerInternLM3ForCausalLM(LlamaForCausalLM):
    """transformers' LlamaForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerInternLM3Config
    config_class = PerLayerInternLM3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
