"""What llama.cpp cannot hold is refused before any work, with what stands in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bipline
from bipline.base.errors import InvalidInput
from bipline.compression.prune import prune
from bipline.model.opening import open_checkpoint
from tests.per_layer import kept, plan_of
from tests.tiny import ROPES, tiny_model

ROPE = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "biased Qwen3": ("qwen3-mha-biased", {}, "qwen3 reads no bias at q, k and v"),
    "longrope": (
        "llama-gqa", {"rope_parameters": {"rope_type": "longrope", **ROPE, **LONG}}, "'longrope'",
    ),
    "scaled Qwen3": (
        "qwen3-gqa",
        {"rope_parameters": {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0}},
        "qwen3 reads no rope scaling of type 'llama3'",
    ),
    "Gemma 2 without caps": (
        "gemma2", {"attn_logit_softcapping": None, "query_pre_attn_scalar": 4},
        "always has attn_logit_softcapping",
    ),
    "scaled Gemma 2": ("gemma2", {}, "scales attention by head_dim"),
    "untied Gemma 2": ("gemma2", {"tie_word_embeddings": False}, "no output matrix beside"),
    "SiLU in Gemma 2": ("gemma2", {"hidden_activation": "silu"}, "computes gelu_pytorch_tanh"),
    "tied OLMo 2": ("olmo2", {"tie_word_embeddings": True}, "has an output matrix beside"),
    "fewer heads of OLMo 2": (
        "olmo2", {"num_attention_heads": 4, "attention_bias": False}, "keep all heads",
    ),
    "biased OLMo 2": ("olmo2", {}, "olmo2 reads no bias at"),
    "OLMo 3 of two thetas": ("olmo3", {"tie_word_embeddings": False}, "by one rope_theta"),
    "OLMo 3, all scaled": (
        "olmo3", {"rope_parameters": dict.fromkeys(ROPES, ROPES["full_attention"])},
        "scales no positions in blocks that slide",
    ),
    "EXAONE 4 of two blocks": ("exaone4", {}, "of 64 blocks alone, not of 2"),
    "SmolLM3 of two blocks": ("smollm3-tied", {}, "turns no positions in each 4th block"),
    "GELU in LLaMA": ("llama-gqa", {"hidden_act": "gelu"}, "computes silu, not gelu"),
    "unnormed Qwen3-MoE": (
        "qwen3-moe-unnormed", {}, "takes norm_topk_prob for true, not false",
    ),
    "capped Gemma 3": (
        "gemma3-text", {"query_pre_attn_scalar": 4},
        "takes attn_logit_softcapping for null, not 2.0",
    ),
    "StarCoder2 without biases": ("starcoder2-unbiased", {}, "takes use_bias for true, not false"),
    "tied Phi-2": ("phi-tied", {}, "has an output matrix beside"),
    "partly turned Phi-3": ("phi3", {}, "rotates whole heads"),
    "gpt-oss as published": (
        "gpt-oss", {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}, "rounds where YaRN begins",
    ),
    "another gate of gpt-oss": ("gpt-oss", {}, "takes swiglu_alpha for 1.702, not 1.5"),
    "Falcon, sequential": ("falcon-sequential", {}, "has no plain MLP with LayerNorms, sequential"),
    "Falcon with biases": ("falcon-one-norm", {"bias": True}, "falcon reads no bias at"),
    "unscaled GPT-2": ("gpt2", {}, "takes scale_attn_weights for true, not false"),
    "OPT": ("opt", {}, "no architecture is known for opt"),
    "Helium": ("helium", {}, "no architecture is known for helium"),
    "small vocabulary": ("llama-gqa", {"vocab_size": 64}, "above the model's vocabulary of 64"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_llama_cpp_cannot_hold_is_refused_before_work(
    name: str, tmp_path: Path
) -> None:
    case, changes, words = MODELS[name]
    model = tiny_model(tmp_path / "model", case, **changes)
    with pytest.raises(InvalidInput) as refusal:
        bipline.export(model, tmp_path / "out", state=tmp_path / "state")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["qwen3-gqa", "gemma2"])
def test_a_per_layer_model_with_norms_of_its_own_is_refused_and_told_what_works(
    case: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", case))
    prune(checkpoint, plan_of(checkpoint, [kept([0], [1]), kept([1], [2, 3])]), tmp_path / "pruned")
    with pytest.raises(InvalidInput, match=r"blocks differ in width; .*--layout uniform"):
        bipline.export(tmp_path / "pruned", tmp_path / "out")
