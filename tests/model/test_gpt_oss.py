"""gpt-oss: its published config as it is written, what it may not say, and sinks of heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import prune
from bipline.compression.score import compute_scores, empty_statistics
from bipline.model.block_loop import BlockLoop
from bipline.model.gating import Gating
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint, read_config
from bipline.settings.line import AllocateSettings
from tests.per_layer import kept, plan_of
from tests.tiny import tiny_model, token_windows

# What openai/gpt-oss-20b says beside its sizes, but for its quantisation.
PUBLISHED: dict[str, Any] = {
    "experts_per_token": 2, "initial_context_length": 4096, "output_router_logits": False,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
        "original_max_position_embeddings": 4096, "truncate": False,
    },
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "swiglu_limit": 7.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("sinks") / "model", "gpt-oss")


def with_config(model: Path, place: Path, without: str = "", **changes: Any) -> Path:
    shutil.copytree(model, place)
    config = json.loads((model / "config.json").read_text())
    config.pop(without, None)
    (place / "config.json").write_text(json.dumps({**config, **changes}))
    return place


def test_the_published_config_is_run_as_transformers_runs_it(model: Path, tmp_path: Path) -> None:
    source = with_config(model, tmp_path / "source", "rope_parameters", **PUBLISHED)
    windows = token_windows(2, 20)
    with torch.no_grad():
        expected = load_model(source, torch.float64)(windows).logits
    found = BlockLoop(open_checkpoint(source), torch.float64).logits(windows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert read_config(source)["rope_parameters"]["rope_theta"] == 150000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"quantization_config": {"quant_method": "mxfp4"}},
            r"quantised source .*Mxfp4Config\(dequantize=True",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not"),
        ({"output_router_logits": True}, "output_router_logits is True, not"),
        ({"swiglu_limit": -1}, "swiglu_limit is -1, not"),
        ({"layer_types": ["full_attention"]}, "layer_types has not one entry for each of 2"),
        ({"layer_types": ["full_attention", "chunked"]}, "layer_types is"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, and num_local_experts only 8"),
        ({"attention_bias": False}, "does not belong"),
    ],
)
def test_what_its_class_does_not_follow_is_refused(
    model: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as refusal:
        open_checkpoint(with_config(model, tmp_path / "source", **change))
    assert "\n" not in str(refusal.value)


def test_sinks_go_with_their_heads(model: Path, tmp_path: Path) -> None:
    """And blocks that stay keep their kind of attention; what is left lies as it lay."""
    checkpoint = open_checkpoint(model)
    scores = compute_scores(checkpoint, empty_statistics(checkpoint), "random", Options())
    plan = allocate(checkpoint, scores, AllocateSettings(ratio=0.7), 0)
    prune(checkpoint, plan, tmp_path / "pruned")
    pruned = open_checkpoint(tmp_path / "pruned")
    assert pruned.config["layer_types"] == checkpoint.config["layer_types"]
    assert pruned.shape.num_key_value_heads < checkpoint.shape.num_key_value_heads
    for index, block in enumerate(plan.blocks):
        prefix, experts = f"model.layers.{index}", list(block.experts)
        heads = [2 * group + each for group in block.attention_groups for each in range(2)]
        for name, stays in (
            ("self_attn.sinks", heads), ("mlp.router.bias", experts),
            ("mlp.experts.gate_up_proj", experts), ("mlp.experts.down_proj_bias", experts),
        ):  # fmt: skip
            source = checkpoint.tensor(f"{prefix}.{name}")
            assert pruned.tensor(f"{prefix}.{name}").equal(source[stays]), name


def test_each_expert_keeps_the_channels_of_its_own(model: Path, tmp_path: Path) -> None:
    """Gate and up of a channel, their biases and its row of down_proj, of experts that stay."""
    checkpoint, experts = open_checkpoint(model), (1, 2, 3, 5, 6)
    inside = tuple(tuple(sorted({(expert + 5 * n) % 40 for n in range(8)})) for expert in experts)
    some = kept([0, 1, 2, 3], []).model_copy(update={"experts": experts, "expert_channels": inside})
    prune(checkpoint, plan_of(checkpoint, [some, some], "uniform"), tmp_path / "pruned")
    pruned = open_checkpoint(tmp_path / "pruned")
    held = [checkpoint.block_weights(1), pruned.block_weights(1)]
    names = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    for name in names:
        source, found = (each[f"mlp.experts.{name}"] for each in held)
        for place, (expert, channels) in enumerate(zip(experts, inside, strict=True)):
            pairs = [2 * channel + each for channel in channels for each in (0, 1)]
            expected = source[expert]
            if name.startswith("gate_up"):
                expected = expected[..., pairs]
            elif name == "down_proj":
                expected = expected[list(channels)]
            assert found[place].equal(expected), (name, expert)


def test_the_usual_way_to_load_what_is_left_runs_it(model: Path, tmp_path: Path) -> None:
    """In bfloat16, by whatever way transformers runs experts."""
    checkpoint = open_checkpoint(model)
    scores = compute_scores(checkpoint, empty_statistics(checkpoint), "random", Options())
    prune(checkpoint, allocate(checkpoint, scores, AllocateSettings(), 0), tmp_path / "pruned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.bfloat16)
    assert type(loaded).__name__ == "GptOssForCausalLM"
    with torch.no_grad():
        assert bool(loaded.eval()(token_windows(1, 12)).logits.isfinite().all())


def test_a_clamped_gate_is_held_at_its_limits() -> None:
    """Beyond them nothing moves: neither the value nor the slope of what is clamped."""
    gating = Gating("silu", (1.702, 7.0))
    gate, up = torch.tensor([9.0, 7.0, -9.0]), torch.tensor([-8.0, -7.0, 8.0])
    value = gating.value(gate, up)
    assert value[0] == value[1] == gating.value(gate[1:2], up[1:2])[0]
    of_up, of_gate = gating.slopes(gate, up)
    assert of_up[0] == of_gate[0] == 0 and of_up[2] == 0 and of_gate[2] != 0
