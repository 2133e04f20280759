"""``bipline prune`` and ``bipline evaluate`` on trained models and real text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import run

LOAD_AND_GENERATE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
prompt = tokenizer("Once upon a time", return_tensors="pt")
output = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
print(sum(p.numel() for p in model.parameters()), output.shape[1] - prompt["input_ids"].shape[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize(
    ("name", "text", "held_out", "method"),
    [
        ("stories260K", "tinystories.train.txt", "tinystories.valid.txt", "auto"),
        # auto takes a minute and more here; benchmarks.quality measures it.
        ("reference-mha", "novels.calibration.txt", "novel.hound.txt", "wanda-sp"),
    ],
)
def test_prune_then_load_with_plain_transformers(
    capfd: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    name: str,
    text: str,
    held_out: str,
    method: str,
    ratio: float,
) -> None:
    model, pruned = data / "models" / name, tmp_path / "pruned"
    outcome = run(
        capfd, "prune", model, "--out", pruned, "--ratio", str(ratio), "--samples", "16",
        "--calibration", data / "text" / text, "--state", tmp_path, "--json", tmp_path / "p.json",
        "--criterion", method, "--compensation", "obs",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    result = json.loads((tmp_path / "p.json").read_text())
    assert ratio <= result["ratio"]["reached_blocks"] <= ratio + 0.01
    blocks = result["block_parameters"]
    assert blocks["after"] / blocks["before"] == pytest.approx(
        1 - result["ratio"]["reached_blocks"], abs=1e-6
    )
    printed = subprocess.run(
        [sys.executable, "-c", LOAD_AND_GENERATE, str(pruned)],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert int(printed[0]) == result["parameters"]["after"]
    assert 1 <= int(printed[1]) <= 8
    short = tmp_path / "short.txt"
    short.write_text((data / "text" / held_out).read_text()[:20_000])
    outcome = run(
        capfd, "evaluate", pruned, "--baseline", model, "--text", f"short={short}",
        "--state", tmp_path, "--json", tmp_path / "e.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["tensor_digest"] != record["baseline"]["tensor_digest"]
    assert record["protocol"]["digest"] == record["baseline"]["protocol"]["digest"]
    assert (
        record["perplexity"]["short"]["value"] > record["baseline"]["perplexity"]["short"]["value"]
    )


@pytest.mark.slow
def test_all_seven_tasks_run_on_real_rows(
    capfd: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    tasks = {
        "boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa",
    }  # fmt: skip
    outcome = run(
        capfd, "evaluate", data / "models" / "stories260K", "--tasks", ",".join(sorted(tasks)),
        "--task-data", data / "tasks", "--limit", "40", "--max-excluded", "0.3",
        "--state", tmp_path, "--json", tmp_path / "e.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    results = json.loads((tmp_path / "e.json").read_text())["tasks"]
    assert results.keys() == tasks
    assert all(0 <= result["acc"] <= 1 for result in results.values())
    assert {name: result["excluded"] for name, result in results.items() if result["excluded"]} == {
        "boolq": 40 - results["boolq"]["n"]
    }
