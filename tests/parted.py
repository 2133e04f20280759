"""A block of transformers by the names of its build, where its class stores several as one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

LAST = ("down_proj", "c_proj", "fc2")


def parted(layer: Any, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is ``held`` of a block's parameters; fused ones as views of their rows, part by part."""
    attention = layer.self_attn
    [last] = [getattr(layer.mlp, name) for name in LAST if hasattr(layer.mlp, name)]
    ffn = last.in_features
    output = attention.dense if hasattr(attention, "dense") else attention.o_proj
    queries = output.in_features
    values = queries // attention.num_key_value_groups
    parts = {
        "self_attn.qkv_proj": {"self_attn.q_proj": queries, "self_attn.k_proj": values,
                               "self_attn.v_proj": values},
        "mlp.gate_up_proj": {"mlp.gate_proj": ffn, "mlp.up_proj": ffn},
        "mlp.c_fc": {"mlp.up_proj": ffn},
        "mlp.c_proj": {"mlp.down_proj": last.out_features},
        "self_attn.dense": {"self_attn.o_proj": last.out_features},
        "mlp.fc1": {"mlp.up_proj": ffn},
        "mlp.fc2": {"mlp.down_proj": last.out_features},
    }  # fmt: skip
    found = {}
    for name, tensor in held.items():
        module, _, kind = name.rpartition(".")
        first = 0
        for part, rows in parts.get(module, {module: len(tensor)}).items():
            found[f"{part}.{kind}"] = tensor[first : first + rows]
            first += rows
        assert first == len(tensor)
    return found
