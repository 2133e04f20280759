"""What the pipeline refuses, as its user sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_calibration_text_that_is_the_evaluation_text(tmp_path: Path) -> None:
    arguments = [
        "--set",
        f"state={tmp_path}",
        "--set",
        "texts.calibration=assets/texts/held-out.txt",
    ]
    outcome = subprocess.run(
        [sys.executable, "-m", "bipline", "demo", *arguments], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert outcome.returncode == 2, outcome
    [line] = outcome.stderr.strip().splitlines()
    assert "100.0% of its 13-grams stand in the evaluation text" in line
    assert "held-out.txt" in line
    assert not list(tmp_path.rglob("token_ids.safetensors"))
