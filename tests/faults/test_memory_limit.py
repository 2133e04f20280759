"""A model three times larger than the memory a process may have goes through."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.shapes import random_checkpoint
from tests.conftest import ASSETS

LIMIT_BYTES = 1_000_000_000
WIDTHS = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_model_larger_than_the_limit(tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path / "model", "narrow-1b", **WIDTHS, num_key_value_heads=16)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert size > 3 * LIMIT_BYTES
    arguments = [
        "prune", model, "--ratio", "0.5", "--dtype", "bfloat16", "--samples", "4", "--seqlen", "32",
        "--criterion", "llm-bip-glu",
        "--calibration", ASSETS / "texts" / "calibration.txt", "--out", tmp_path / "out",
        "--state", tmp_path / "state", "--json", tmp_path / "result.json",
    ]  # fmt: skip
    outcome = subprocess.run(
        [sys.executable, "-m", "bipline", *map(str, arguments)],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES)),
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["peak_anonymous_bytes"] < LIMIT_BYTES
    assert result["parameters"]["after"] < result["parameters"]["before"] * 0.6
