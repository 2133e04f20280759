"""HunYuan dense decoders whose blocks differ in width: bipline's class around transformers' own.

bipline writes this file, unchanged, beside the weights of such a model.
"""

from __future__ import annotations

from typing import Any

from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM

from .modeling_per_layer import PerLayerWidths, give_widths


class PerLayerHunYuanDenseV1Config(PerLayerWidths, HunYuanDenseV1Config):
    """transformers' HunYuanDenseV1Config, with the sizes of every block."""

    model_type = "per_layer_hunyuan_v1_dense"


class PerLayerHunYuanDenseV1ForCausalLM(HunYuanDenseV1ForCausalLM):
    """transformers' HunYuanDenseV1ForCausalLM, with every block as wide as the config lists it."""

    config: PerLayerHunYuanDenseV1Config
    config_class = PerLayerHunYuanDenseV1Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        give_widths(self.model)
        self.post_init()
