"""Tiny random models with a tiny tokenizer, of every family that is supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bipline.model.families import families
from bipline.model.family import spelled

VOCAB_SIZE = 96
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
SINGLE = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8}
MULTI = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
# Low enough for the caps to bite on drawn weights.
CAPPED = {
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 6,
}  # fmt: skip
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 4.0},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 2.0],
    "long_factor": [1.5, 2.0, 4.0, 8.0],
}

# name -> (model_type, what differs from SIZES)
FAMILY_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama-gqa-scaled-rope": ("llama", {**GROUPED, "rope_parameters": SCALED_ROPE}),
    "llama-mqa": ("llama", {**SINGLE, "tie_word_embeddings": False}),
    "llama-mha": ("llama", {**MULTI, "tie_word_embeddings": False}),
    "llama-gqa-biased": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama-mha-mlp-bias": ("llama", {**MULTI, "mlp_bias": True}),
    "mistral-gqa": ("mistral", {**GROUPED, "sliding_window": None}),
    "mistral-mqa": ("mistral", {**SINGLE, "sliding_window": 4096}),
    "mistral-mha": ("mistral", {**MULTI, "sliding_window": None}),
    "qwen2-gqa": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2-mqa": ("qwen2", SINGLE),
    "qwen2-mha": ("qwen2", MULTI),
    "qwen3-gqa": ("qwen3", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3-mqa": ("qwen3", SINGLE),
    "qwen3-mha-biased": ("qwen3", {**MULTI, "attention_bias": True}),
    "seed-oss-gqa": ("seed_oss", {**GROUPED, "attention_out_bias": True, "mlp_bias": True}),
}

# Families of the same kind, which fewer tests run over; each has every switch of its own on.
MORE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ministral": (
        "ministral",
        {**GROUPED, **SLIDING},
    ),
    "smollm3": (
        "smollm3",
        {**GROUPED, "no_rope_layers": [1, 0], "attention_bias": True, "mlp_bias": True},
    ),
    "smollm3-tied": ("smollm3", {**GROUPED, "no_rope_layer_interval": 2}),
    "granite": (
        "granite",
        {
            **GROUPED, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
            "attention_multiplier": 0.3, "logits_scaling": 8.0, "mlp_bias": True,
        },
    ),
    "gemma": ("gemma", {**GROUPED, "attention_bias": True}),
    "gemma-mqa": ("gemma", SINGLE),
    "ernie4-5": ("ernie4_5", {**GROUPED, "use_bias": True}),
    "hunyuan": (
        "hunyuan_v1_dense",
        {
            **GROUPED, "attention_bias": True,
            "rope_parameters": {
                "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0,
            },
        },
    ),
    "internlm3": ("internlm3", GROUPED),
    "internlm3-biased": ("internlm3", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "helium": ("helium", {**MULTI, "attention_bias": True, "mlp_bias": True}),
    "phi3-mha": ("phi3", MULTI),
    "phi3": ("phi3", {**GROUPED, "sliding_window": 8, "partial_rotary_factor": 0.5}),
    "phi3-longrope": (
        "phi3",
        {**MULTI, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "phi3-longrope-partial": (
        "phi3",
        {
            **MULTI, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5,
            "rope_parameters": {**LONGROPE, "short_factor": [1.0, 1.1], "long_factor": [1.5, 2.0]},
        },
    ),
    "baichuan": ("baichuan", {**MULTI, "architectures": ["BaiChuanForCausalLM"]}),
    "glm": ("glm", GROUPED),
    "glm4": ("glm4", GROUPED),
    "glm-unbiased": ("glm", {**MULTI, "attention_bias": False, "tie_word_embeddings": True}),
    "olmo": ("olmo", {**GROUPED, "clip_qkv": 0.5, "attention_bias": True}),
    "gemma2": ("gemma2", {**GROUPED, **SLIDING, **CAPPED, "attention_bias": True}),
    "gemma2-mqa": ("gemma2", {**SINGLE, **SLIDING, "attn_logit_softcapping": None}),
    "gemma3-text": ("gemma3_text", {**GROUPED, **SLIDING, **CAPPED, "rope_parameters": ROPES}),
    "olmo2": ("olmo2", {**GROUPED, "attention_bias": True}),
    "olmo3": ("olmo3", {**MULTI, **SLIDING, "rope_parameters": ROPES}),
    "exaone4": ("exaone4", {**GROUPED, **SLIDING}),
    "starcoder2": ("starcoder2", {**GROUPED, "sliding_window": 8}),
    "starcoder2-unbiased": (
        "starcoder2", {**SINGLE, "use_bias": False, "tie_word_embeddings": False},
    ),
    "nemotron": ("nemotron", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "nemotron-mha": ("nemotron", {**MULTI, "partial_rotary_factor": 1.0, "hidden_act": "silu"}),
}  # fmt: skip
# Attention and FFN beside each other.
PARALLEL_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", {**GROUPED, "attention_bias": True, "logit_scale": 0.25}),
    "cohere-mqa": ("cohere", {**SINGLE, "tie_word_embeddings": False}),
    "cohere2": ("cohere2", {**MULTI, **SLIDING, "attention_bias": True}),
    "phi": ("phi", GROUPED),
    "phi-tied": ("phi", {**MULTI, "tie_word_embeddings": True, "partial_rotary_factor": 1.0}),
}  # fmt: skip
# FFNs without a gate, in classes that hold no fewer heads.
HEADS_FIXED_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", {**MULTI, "activation_function": "gelu"}),
    "gpt-neox": ("gpt_neox", {**MULTI, "rotary_pct": 0.5, "rotary_emb_base": 500}),
    "gpt-neox-sequential": (
        "gpt_neox",
        {
            **MULTI,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 900.0,
                "factor": 2.0,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "gpt2": ("gpt2", {**MULTI, "scale_attn_weights": False}),
    "gpt2-wide": (
        "gpt2",
        {**MULTI, "intermediate_size": None, "tie_word_embeddings": False},
    ),
    "falcon": ("falcon", {**MULTI, "num_key_value_heads": None, "bias": True}),
    "falcon-new": ("falcon", {**GROUPED, "new_decoder_architecture": True}),
    "falcon-one-norm": (
        "falcon",
        {
            **SINGLE,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
    ),
    "falcon-sequential": (
        "falcon",
        {
            **MULTI,
            "parallel_attn": False,
            "multi_query": False,
            "alibi": True,
            "bias": True,
        },
    ),
    "bloom": ("bloom", {**MULTI, "num_attention_heads": 8, "num_key_value_heads": 8}),
    "opt-unbiased": ("opt", {**MULTI, "enable_bias": False, "tie_word_embeddings": False}),
}
# Mixtures of experts: two of eight for each token.
EXPERT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "qwen3_moe",
        {
            **GROUPED, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "norm_topk_prob": True, "attention_bias": True,
        },
    ),
    "glm4-moe": (
        "glm4_moe",
        {
            **GROUPED, "num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24, "n_shared_experts": 2, "use_qk_norm": True,
            "routed_scaling_factor": 1.8, "attention_bias": True, "num_nextn_predict_layers": 0,
        },
    ),
    "glm4-moe-plain": (
        "glm4_moe",
        {
            **GROUPED, "n_routed_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False,
            "moe_intermediate_size": 12, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            **GROUPED, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 9,
            "swiglu_alpha": 1.5, "swiglu_limit": 0.4, "num_attention_heads": 8, "head_dim": 6,
        },
    ),
    "gpt-oss-plain": (
        "gpt_oss",
        {
            **SINGLE, "num_local_experts": 6, "num_experts_per_tok": 3, "attention_bias": False,
            "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 5,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "qwen3-moe-unnormed": (
        "qwen3_moe",
        {
            **SINGLE, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
            "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 9,
        },
    ),
}  # fmt: skip
CASES = FAMILY_CASES | MORE_CASES | PARALLEL_CASES | HEADS_FIXED_CASES | EXPERT_CASES
# Families of which transformers has a class of the same name.
WITH_A_CLASS = [name for name, family in sorted(families().items()) if not family.read_as]


def config_of(case: str = "llama-gqa", **changes: Any) -> dict[str, Any]:
    """The config.json of a case, with fields that differ."""
    model_type, different = CASES[case]
    return spelled({**SIZES, **different, "model_type": model_type, **changes})


def tiny_model(
    directory: Path,
    case: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> Path:
    """Write a random model of a case, with every tensor drawn, and a tokenizer beside it.

    ``changes`` are config fields that differ from the case's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = config_of(case, **changes)
    if config["model_type"] == "baichuan":
        tiny_model(directory, "llama-mha", seed, dtype, **changes)
        return as_baichuan(directory, config)
    made = AutoConfig.for_model(**config)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(made).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh biases are zero and fresh norms one: draw them, or half a bug stays hidden.
            noise = torch.randn_like(parameter) * 0.2
            parameter.copy_(noise + 1 if parameter.dim() == 1 else noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(directory)
    tiny_tokenizer(directory)
    return directory


def as_baichuan(directory: Path, config: dict[str, Any]) -> Path:
    """A LLaMA as Baichuan-7B is stored: q, k and v in one matrix, and code of its own named."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for index in range(config["num_hidden_layers"]):
        attention = f"model.layers.{index}.self_attn"
        parts = [tensors.pop(f"{attention}.{name}_proj.weight") for name in "qkv"]
        tensors[f"{attention}.W_pack.weight"] = torch.cat(parts)
    save_file(tensors, file, {"format": "pt"})
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def tiny_tokenizer(directory: Path) -> None:
    """A character tokenizer of VOCAB_SIZE entries with a BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = ["<s>", "</s>", *(chr(code) for code in range(32, 32 + VOCAB_SIZE - 2))]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="?"
    ).save_pretrained(directory)


def token_windows(windows: int = 3, seqlen: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids, ``[windows, seqlen]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_SIZE, (windows, seqlen), generator=generator)
