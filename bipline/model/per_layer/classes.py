"""Our own classes of per-layer models, installed with bipline, by their ``model_type``."""

from __future__ import annotations

from typing import Any

from bipline.model.per_layer.modeling_per_layer_ernie4_5 import PerLayerErnie45ForCausalLM
from bipline.model.per_layer.modeling_per_layer_exaone4 import PerLayerExaone4ForCausalLM
from bipline.model.per_layer.modeling_per_layer_gemma import PerLayerGemmaForCausalLM
from bipline.model.per_layer.modeling_per_layer_gemma2 import PerLayerGemma2ForCausalLM
from bipline.model.per_layer.modeling_per_layer_gemma3_text import PerLayerGemma3TextForCausalLM
from bipline.model.per_layer.modeling_per_layer_glm import PerLayerGlmForCausalLM
from bipline.model.per_layer.modeling_per_layer_glm4 import PerLayerGlm4ForCausalLM
from bipline.model.per_layer.modeling_per_layer_granite import PerLayerGraniteForCausalLM
from bipline.model.per_layer.modeling_per_layer_helium import PerLayerHeliumForCausalLM
from bipline.model.per_layer.modeling_per_layer_hunyuan_v1_dense import (
    PerLayerHunYuanDenseV1ForCausalLM,
)
from bipline.model.per_layer.modeling_per_layer_internlm3 import PerLayerInternLM3ForCausalLM
from bipline.model.per_layer.modeling_per_layer_llama import PerLayerLlamaForCausalLM
from bipline.model.per_layer.modeling_per_layer_ministral import PerLayerMinistralForCausalLM
from bipline.model.per_layer.modeling_per_layer_mistral import PerLayerMistralForCausalLM
from bipline.model.per_layer.modeling_per_layer_nemotron import PerLayerNemotronForCausalLM
from bipline.model.per_layer.modeling_per_layer_olmo import PerLayerOlmoForCausalLM
from bipline.model.per_layer.modeling_per_layer_olmo2 import PerLayerOlmo2ForCausalLM
from bipline.model.per_layer.modeling_per_layer_olmo3 import PerLayerOlmo3ForCausalLM
from bipline.model.per_layer.modeling_per_layer_phi3 import PerLayerPhi3ForCausalLM
from bipline.model.per_layer.modeling_per_layer_qwen2 import PerLayerQwen2ForCausalLM
from bipline.model.per_layer.modeling_per_layer_qwen3 import PerLayerQwen3ForCausalLM
from bipline.model.per_layer.modeling_per_layer_seed_oss import PerLayerSeedOssForCausalLM
from bipline.model.per_layer.modeling_per_layer_smollm3 import PerLayerSmolLM3ForCausalLM
from bipline.model.per_layer.modeling_per_layer_starcoder2 import PerLayerStarcoder2ForCausalLM

PER_LAYER_CLASSES: dict[str, Any] = {
    each.config_class.model_type: each
    for each in (
        PerLayerErnie45ForCausalLM,
        PerLayerGemmaForCausalLM,
        PerLayerExaone4ForCausalLM,
        PerLayerGemma2ForCausalLM,
        PerLayerGemma3TextForCausalLM,
        PerLayerGlmForCausalLM,
        PerLayerGlm4ForCausalLM,
        PerLayerOlmo2ForCausalLM,
        PerLayerOlmo3ForCausalLM,
        PerLayerGraniteForCausalLM,
        PerLayerHeliumForCausalLM,
        PerLayerHunYuanDenseV1ForCausalLM,
        PerLayerInternLM3ForCausalLM,
        PerLayerLlamaForCausalLM,
        PerLayerMinistralForCausalLM,
        PerLayerMistralForCausalLM,
        PerLayerNemotronForCausalLM,
        PerLayerOlmoForCausalLM,
        PerLayerPhi3ForCausalLM,
        PerLayerQwen2ForCausalLM,
        PerLayerQwen3ForCausalLM,
        PerLayerSeedOssForCausalLM,
        PerLayerSmolLM3ForCausalLM,
        PerLayerStarcoder2ForCausalLM,
    )
}
