"""A compress run whose package holds a gguf beside hf."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bipline.storage.manifest import verify_directory
from bipline.values.plan import read_plan
from tests.pipeline.conftest import Run

# In the first run nothing was known yet.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("first")]
EXPORT = {"formats": ("hf", "gguf"), "gguf": {"type": "q8_0", "windows": 2, "seqlen": 16}}


def test_the_package_of_a_run_holds_both_formats_and_a_second_run_changes_nothing(run: Run) -> None:
    chosen = {"export": EXPORT, "recover": {"enabled": False}}
    summary = run(**chosen)
    steps = [stage.name for stage in summary.stages]
    assert steps.index("allocate") < steps.index("check_formats") < steps.index("compensate")
    package = Path(summary.package.location)
    manifest = verify_directory(package)
    assert manifest.info["formats"] == ["hf", "gguf"]
    assert "gguf/model.gguf" in manifest.files
    told = json.loads((package / "evaluation.json").read_text())["formats"]["gguf"]
    assert told["perplexity"]["held-out"]["engine"]["tokens"] == 2 * 15
    # The plan as it was carried out: compensation may have chosen other widths.
    assert told["origin"]["plan_digest"] == read_plan(package / "pruning_plan.json").digest
    assert run(**chosen).unchanged
