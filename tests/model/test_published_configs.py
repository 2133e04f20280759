"""What config.json files of families say where they are published: read, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.model.config_keys import checked_config
from bipline.model.family import build_of, family_in, spelled
from bipline.model.shapes import shape_of

OPT: dict[str, Any] = {
    "model_type": "opt", "architectures": ["OPTForCausalLM"], "activation_dropout": 0.0,
    "activation_function": "relu", "attention_dropout": 0.0, "bos_token_id": 2, "dropout": 0.1,
    "do_layer_norm_before": True, "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768,
    "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "pad_token_id": 1,
    "num_attention_heads": 12, "num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272,
    "torch_dtype": "float16", "use_cache": True, "word_embed_proj_dim": 768,
    "_remove_final_layer_norm": False,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "model_type": "gpt2", "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "vocab_size": 50257,
    "summary_activation": None, "summary_type": "cls_index", "task_specific_params": {},
}  # fmt: skip
PYTHIA: dict[str, Any] = {
    "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
    "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
    "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
FALCON: dict[str, Any] = {
    "model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": False,
    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "bias": False,
    "auto_map": {"AutoModel": "modeling_falcon.FalconModel"}, "bos_token_id": 11,
    "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 4544, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "multi_query": True, "new_decoder_architecture": False,
    "num_attention_heads": 71, "num_hidden_layers": 32, "parallel_attn": True,
    "torch_dtype": "bfloat16", "vocab_size": 65024,
}  # fmt: skip
BLOOM: dict[str, Any] = {
    "model_type": "bloom", "architectures": ["BloomForCausalLM"], "attention_dropout": 0.0,
    "apply_residual_connection_post_layernorm": False, "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True,
    "n_embed": 1024, "n_inner": None, "n_layer": 24, "num_attention_heads": 16,
    "offset_alibi": 100, "pad_token_id": 3, "pretraining_tp": 1, "seq_length": 2048,
    "skip_bias_add": True, "unk_token_id": 0, "use_cache": True, "vocab_size": 250880,
}  # fmt: skip
WIDE_FALCON = {
    **FALCON, "hidden_size": 8192, "new_decoder_architecture": True, "num_attention_heads": 128,
    "num_kv_heads": 8,
}  # fmt: skip
# (hidden_size, intermediate_size, heads, KV heads, build)
READ: list[tuple[dict[str, Any], tuple[int, int, int, int], str]] = [
    (OPT, (768, 3072, 12, 12), "plain MLP with LayerNorms, sequential"),
    (GPT2, (768, 3072, 12, 12), "plain MLP with LayerNorms, sequential"),
    (PYTHIA, (512, 2048, 8, 8), "plain MLP with LayerNorms, parallel, each behind its own"),
    (BLOOM, (1024, 4096, 16, 16), "plain MLP with LayerNorms, sequential"),
    (FALCON, (4544, 18176, 71, 1), "plain MLP with LayerNorms, parallel"),
    (
        WIDE_FALCON,
        (8192, 32768, 128, 8),
        "plain MLP with LayerNorms, parallel, each behind its own",
    ),
]


@pytest.mark.parametrize(("config", "sizes", "kind"), READ)
def test_sizes_and_kinds(
    config: dict[str, Any], sizes: tuple[int, int, int, int], kind: str
) -> None:
    """And what is written of it is read as the same."""
    checked = checked_config(config, "config.json")
    shape = shape_of(checked)
    found = shape.hidden_size, shape.intermediate_size
    assert (*found, shape.num_attention_heads, shape.num_key_value_heads) == sizes
    assert build_of(family_in(checked)).kind == kind
    assert checked_config(spelled(checked), "config.json") == checked


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**OPT, "word_embed_proj_dim": 512}, "word_embed_proj_dim is 512, not hidden_size 768"),
        ({**OPT, "do_layer_norm_before": False}, "do_layer_norm_before is False, not true"),
        ({**OPT, "ffn_dim": None}, "ffn_dim is None, not a whole number"),
        ({**GPT2, "n_embd": "wide"}, "n_embd is 'wide', not a whole number"),
        ({**OPT, "intermediate_size": 3072}, "is called ffn_dim by a opt; name it so"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx is True, not false"),
        ({**BLOOM, "n_head": 8}, "is 8, and by another name 16; remove one of them"),
        ({**BLOOM, "slow_but_exact": True}, "slow_but_exact is True, not false"),
        ({**PYTHIA, "partial_rotary_factor": 0.5}, "is called rotary_pct by a gpt_neox"),
        ({**FALCON, "multi_query": False, "num_kv_heads": 8}, "is 8, not num_attention_heads 71"),
    ],
)
def test_what_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        checked_config(config, "config.json")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
