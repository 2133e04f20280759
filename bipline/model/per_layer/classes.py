"""Our own classes of per-layer models, installed with bipline, by their ``model_type``."""

from __future__ import annotations

from typing import Any

from bipline.model.per_layer.modeling_per_layer_llama import PerLayerLlamaForCausalLM
from bipline.model.per_layer.modeling_per_layer_mistral import PerLayerMistralForCausalLM
from bipline.model.per_layer.modeling_per_layer_qwen2 import PerLayerQwen2ForCausalLM
from bipline.model.per_layer.modeling_per_layer_qwen3 import PerLayerQwen3ForCausalLM
from bipline.model.per_layer.modeling_per_layer_seed_oss import PerLayerSeedOssForCausalLM

PER_LAYER_CLASSES: dict[str, Any] = {
    each.config_class.model_type: each
    for each in (
        PerLayerLlamaForCausalLM,
        PerLayerMistralForCausalLM,
        PerLayerQwen2ForCausalLM,
        PerLayerQwen3ForCausalLM,
        PerLayerSeedOssForCausalLM,
    )
}
