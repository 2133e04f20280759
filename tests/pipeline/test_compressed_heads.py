"""Query heads that go from every group, corrected: from the reference model to a package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipline.model.opening import open_checkpoint
from bipline.storage.manifest import verify_directory
from bipline.values.plan import read_plan
from pipelines.run import run_compress
from tests.command import run as command
from tests.pipeline.conftest import configuration, elsewhere
from tests.tiny import token_windows

OPTION = {"attention": "query-heads"}


@pytest.mark.slow
def test_a_package_that_plain_transformers_loads(reference: Path, folder: Path) -> None:
    texts = reference.parent / "texts"
    files = {"calibration": "calibration.txt", "held-out": "prose.txt"}
    sections = {
        "texts": {name: str(texts / file) for name, file in files.items()},
        "score": {"criterion": "llm-bip-glu"}, "recover": {},
        "calibrate": {"samples": 36, "seqlen": 64},
        "allocate": {"ratio": 0.2, "allocation": "uniform", "allocation_option": OPTION},
        "compensate": {"compensation": "least-squares"}, "promote": {"name": "heads"},
    }  # fmt: skip
    with elsewhere(folder):
        summary = run_compress(configuration(reference, folder, **sections))
    assert summary.status == "completed"
    package = Path(summary.package.location)
    assert verify_directory(package).digest == summary.package.digest
    plan = read_plan(package / "pruning_plan.json")
    assert {block.queries_per_group for block in plan.blocks} == {1}
    assert {len(block.attention_groups) for block in plan.blocks} == {4}
    assert plan.compensated is not None and plan.compensated.error < plan.compensated.error_without
    loaded = AutoModelForCausalLM.from_pretrained(package / "hf", dtype=torch.float32).eval()
    config = loaded.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 32)
    parameters = sum(each.numel() for each in loaded.parameters())
    assert parameters == open_checkpoint(package / "hf").parameters
    dense, reached = open_checkpoint(reference).parameters, plan.budget.reached_total
    assert dense - parameters == round(reached * dense)
    with torch.no_grad():
        assert bool(loaded(token_windows()).logits.isfinite().all())


@pytest.mark.slow
def test_a_comparison_takes_both_kinds_side_by_side(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = reference.parent / "texts"
    outcome = command(
        capfd, "compare", reference, "--out", tmp_path / "out", "--ratios", "0.2",
        "--criteria", "magnitude,llm-bip-exact", "--allocations",
        "uniform,uniform:attention=query-heads", "--samples", "4", "--seqlen", "32",
        "--calibration", texts / "calibration.txt", "--text", f"held={texts / 'prose.txt'}",
        "--json", tmp_path / "compared.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    rows = json.loads((tmp_path / "compared.json").read_text("utf-8"))["rows"]
    told = {}
    for row in rows:
        asked, found = row["combination"], row["measured"]
        name = asked["criterion"]["name"], bool(asked["allocation"]["options"])
        told[name] = row["refusal"] or (found["widths"][0][0], found.get("query_heads"))
    assert told[("magnitude", False)] == (3, None) and told[("magnitude", True)] == (4, 1)
    assert "llm-bip-exact scores attention groups" in told[("llm-bip-exact", True)]
