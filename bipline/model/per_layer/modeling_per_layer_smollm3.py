"""SmolLM3 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import SmolLM3Config, SmolLM3ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerSmolLM3Config(PerLayerWidths, SmolLM3Config):
    """transformers' SmolLM3Config, with the sizes of every block."""

    model_type = "per_layer_smollm3"


class PerLayerSmolLM3ForCausalLM(SmolLM3ForCausalLM):
    """transformers' SmolLM3ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerSmolLM3Config
    config_class = PerLayerSmolLM3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
