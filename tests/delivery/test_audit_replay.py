"""A replay gives equal tensors, by the plan alone or with its corrections; other models none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bipline
from bipline.audits.replay import replay_findings
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
QUICK: dict[str, Any] = {"ratio": 0.3, "samples": 32, "seqlen": 16, "criterion": "magnitude"}


@pytest.mark.parametrize(
    ("case", "compensation"),
    [("llama-gqa", "none"), ("qwen3-gqa", "none"), ("mistral-mha", "least-squares")],
)
def test_the_same_tensors(tmp_path: Path, case: str, compensation: str) -> None:
    dense, out = tiny_model(tmp_path / "dense", case), tmp_path / "out"
    text = tmp_path / "text.txt"
    text.write_text("It rained. Nobody minded, for it had been a dry year.\n" * 40)
    corrections = tmp_path / "corrections" if compensation != "none" else None
    bipline.prune(
        dense, out, calibration=text, compensation=compensation, state=tmp_path / "state",
        **({"corrections": str(corrections)} if corrections else {}), **QUICK,
    )  # fmt: skip
    [found] = replay_findings(out, str(dense), corrections, tmp_path / "downloads")
    assert found.status == "holds" and "the same tensors" in found.said
    if corrections:
        [unasked] = replay_findings(out, str(dense), None, tmp_path / "downloads")
        assert unasked.status == "unknown"
    other = tiny_model(tmp_path / "other", case, seed=1)
    with pytest.raises(bipline.BiplineError):
        list(replay_findings(out, str(other), corrections, tmp_path / "downloads"))
