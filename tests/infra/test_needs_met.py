"""What the steps were said to need, beside what a run on the local stack then used.

Of time there is no test: it follows how busy the machine is. What the demo took is told in
infra/README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import yaml

from bipline.model.floor import usual_rates
from bipline.model.opening import open_checkpoint
from bipline.stages.step_needs import FILES, step_needs
from bipline.values.need import StepNeed
from tests.layers import ROOT
from tests.pipeline.conftest import TEXTS, configuration, write_text
from tests.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FACTOR = 1.5
# Two blocks in float32 are 113 MB: more than a rounding of what the libraries take.
LARGE = {
    "hidden_size": 768, "intermediate_size": 4096, "num_attention_heads": 12,
    "num_key_value_heads": 4, "head_dim": 64, "num_hidden_layers": 3,
}  # fmt: skip
Costs = dict[str, list[dict[str, Any]]]
STAGES = {"evaluate_dense": "evaluate", "evaluate_pruned": "evaluate"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, StepNeed], Costs]:
    """One run in a process of its own, as a user's is."""
    folder = tmp_path_factory.mktemp("needs")
    model = tiny_model(folder / "model", "llama-gqa", dtype=torch.float32, **LARGE)
    for seed, name in enumerate(TEXTS, start=1):
        write_text(folder / f"{name}.txt", seed, words=1200)
    settings = configuration(
        model, folder, score={"criterion": "llm-bip-glu"},
        calibrate={"samples": 32, "seqlen": 64}, evaluate={"protocol": {"seqlen": 64}},
    )  # fmt: skip
    config = folder / "compress.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    checkpoint = open_checkpoint(str(model))
    needs = step_needs(settings, checkpoint, usual_rates(checkpoint.shape, torch.float32))
    command = [sys.executable, "-m", "bipline", "compress", str(config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    store = folder / "state" / "zenml" / "artifacts" / "bipline"
    costs: Costs = {}
    for file in store.glob("*/*.cost.json"):
        made = file.with_name(file.name.removesuffix(".cost.json"))
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        costs.setdefault(file.parent.name, []).append(
            json.loads(file.read_text()) | {"bytes": size}
        )
    return needs, costs


def used(needs: dict[str, StepNeed], costs: Costs) -> dict[str, list[dict[str, Any]]]:
    """What the stages of a step used, by the step's name."""
    named = {step: costs.get(STAGES.get(step, step), []) for step in needs}
    return {step: found for step, found in named.items() if found}


def test_memory(run: tuple[dict[str, StepNeed], Costs]) -> None:
    needs, costs = run
    found = used(needs, costs)
    assert {"score", "allocate", "prune", "recover", "evaluate_dense", "export"} <= set(found)
    for step, each in found.items():
        for cost in each:
            told, peak = needs[step].memory, cost["peak_anonymous_bytes"]
            assert peak / FACTOR <= told <= peak * FACTOR, (step, told, peak)


def test_disk(run: tuple[dict[str, StepNeed], Costs]) -> None:
    """Of what is more than records and pages."""
    needs, costs = run
    compared = 0
    for step, each in used(needs, costs).items():
        size = max(cost["bytes"] for cost in each)
        if size > 2 * FILES:
            assert size / FACTOR <= needs[step].disk <= size * FACTOR, (step, needs[step], size)
            compared += 1
    assert compared >= 3
