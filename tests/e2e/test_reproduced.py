"""The configurations of the paper's table run, on a small model in place of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

import bipline
from bipline.base.bundled import bundled
from tests.conftest import ASSETS

FILES = sorted(bundled("configs/reproduce").glob("*.yaml"))
TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_runs_on_a_small_model(path: Path, data: Path, tmp_path: Path) -> None:
    """Those of 20 % with LoRA. Fewer blocks stay whole: six are too many of eight."""
    with_lora, texts = path.stem.endswith("-20"), ASSETS / "texts"
    tasks = ", ".join(f"{name}: {data / 'tasks' / name}.jsonl" for name in TASKS)
    summary = bipline.compress(
        path,
        [
            f"model={ASSETS / 'reference-llm'}", f"state={tmp_path / 'state'}",
            f"texts.calibration={texts / 'calibration.txt'}",
            f"texts.wikitext2={texts / 'prose.txt'}",
            f"texts.judge={texts / 'recovery-judge.txt'}",
            f"tasks={{{tasks}}}", "evaluate.protocol.limit=4", "evaluate.protocol.speed=false",
            "calibrate.samples=16", "allocate.keep_first=1", "allocate.keep_last=1",
            f"recover.enabled={str(with_lora).lower()}",
            "recover.recipe.steps=2", "recover.recipe.batch_size=2", "recover.recipe.seqlen=64",
        ],
    )  # fmt: skip
    assert summary is not None
    assert set(summary.records["pruned"].tasks) == set(TASKS)
    budget = summary.plan.budget
    assert budget.reached_total == pytest.approx(budget.asked, abs=0.02)
    assert (summary.recovery is not None) == with_lora
    assert summary.registration.alias == "candidate"
    report = Path(summary.report).read_text(encoding="utf-8")
    assert "Published by others and not measured here" in report
    assert "this run, pruned" in report
