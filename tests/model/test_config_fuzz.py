"""Any config.json over real weights: refused in one line, or run as plain transformers runs it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.model.block_loop import BlockLoop
from bipline.model.config_keys import allowed_keys
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from tests.tiny import tiny_model, token_windows

WINDOWS = token_windows(windows=1, seqlen=6)
CASES = ("llama-gqa", "mistral-mqa", "qwen2-gqa", "qwen3-mha-biased", "seed-oss-gqa")
# Values that are right for some key or another, and nearly right for many.
NEARLY = st.sampled_from([
    0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 40, 64, 96, 97, 1024, 1025, 10**9, -1, 0.0, 1e-6, 0.5, 1.0,
    1e4, 1e6, True, False, None, "", "silu", "gelu", "relu2", "quick_gelu", "llama", "mistral",
    "qwen2", "qwen3", "seed_oss", "per_layer_llama", "float16", "bfloat16", "default", "8",
    [], [0, 1], ["full_attention"] * 2, ["sliding_attention", "full_attention"], {},
])  # fmt: skip
FACTORS = st.sampled_from(
    [1.0, 2.0, 4, 8.0, 0.5, 64, 32, "2", None, [1.0, 2.0], [1.0, 1.5, 2.0, 4.0]]
)
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
ROPE_KEYS = (
    "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor",
    "original_max_position_embeddings", "attention_factor", "beta_fast",
)  # fmt: skip
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(ROPE_TYPES)}, optional=dict.fromkeys(ROPE_KEYS, FACTORS)
)
OTHERS = ("attn_implementation", "return_dict", "output_attentions", "per_layer_config", "x")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fuzzed")
    return {case: tiny_model(folder / case, case, dtype=torch.float32) for case in CASES}


@pytest.fixture(scope="module")
def counts() -> Iterator[Counter[str]]:
    counted: Counter[str] = Counter()
    yield counted
    # A fuzzer that finds nothing but refusals, or nothing but good models, tests half of it.
    assert min(counted["right"], counted["refused"]) >= 20, counted
    print(dict(counted))


@pytest.mark.slow
@settings(
    deadline=20_000,
    max_examples=1500,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), case=st.sampled_from(CASES))
def test_any_config_is_refused_or_run_as_by_transformers(
    models: dict[str, Path], counts: Counter[str], tmp_path: Path, data: st.DataObject, case: str
) -> None:
    model = tmp_path / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(models[case], model)
    path = model / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    keys = st.sampled_from([*sorted(allowed_keys(config["model_type"])), *OTHERS])
    for key in data.draw(st.lists(keys, min_size=1, max_size=3, unique=True)):
        if data.draw(st.booleans()):
            value = ROPE if key.startswith("rope_") and key != "rope_theta" else NEARLY
            config[key] = data.draw(value)
        else:
            config.pop(key, None)
    path.write_text(json.dumps(config))
    try:
        checkpoint = open_checkpoint(model)
        found = BlockLoop(checkpoint).logits(WINDOWS)
        load_model(checkpoint, torch.float32)
    except InvalidInput as error:
        assert "\n" not in str(error)
        counts["refused"] += 1
        return
    known = {key: value for key, value in config.items() if key not in OTHERS}
    path.write_text(json.dumps(known))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = plain(WINDOWS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    counts["right"] += 1
