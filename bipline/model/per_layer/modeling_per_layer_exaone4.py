"""EXAONE 4 decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import Exaone4Config, Exaone4ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerExaone4Config(PerLayerWidths, Exaone4Config):
    """transformers' Exaone4Config, with the sizes of every block."""

    model_type = "per_layer_exaone4"


class PerLayerExaone4ForCausalLM(Exaone4ForCausalLM):
    """transformers' Exaone4ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerExaone4Config
    config_class = PerLayerExaone4Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
