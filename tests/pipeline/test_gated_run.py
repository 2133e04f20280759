"""The compress pipeline with a gate: the verdict decides in the run, and the rest of it stays."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.base.errors import InvalidInput
from bipline.delivery.registries.journal_mlflow import MlflowRegistry
from bipline.values.summary import RunSummary
from tests.command import run as command
from tests.pipeline.conftest import Run, configuration, elsewhere

PASSING = {"limits": [{"figure": "parameters_ratio", "at_most": 0.99}],
           "requirements": {"evaluation_days": 1, "formats": ["hf"]}}  # fmt: skip
REFUSING = {"limits": [{"figure": "perplexity.*", "at_most": 1.5}]}


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Gates as files, by what they do."""
    folder = tmp_path_factory.mktemp("gates")
    for name, gate in (("passing", PASSING), ("refusing", REFUSING)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(gate), encoding="utf-8")
    return {name: str(folder / f"{name}.yaml") for name in ("passing", "refusing")}


@pytest.mark.slow
def test_another_alias_without_a_gate_is_refused_before_the_first_stage(
    run: Run, folder: Path
) -> None:
    stored = folder / "state" / "zenml" / "artifacts"
    before = sorted(stored.rglob("*"))
    with pytest.raises(InvalidInput, match="alias 'production' needs a gate"):
        run(promote={"name": "tiny", "alias": "production"})
    assert sorted(stored.rglob("*")) == before


@pytest.mark.slow
def test_the_verdict_decides_in_the_run(
    first: RunSummary, run: Run, folder: Path, gates: dict[str, str]
) -> None:
    section: dict[str, Any] = {"name": "gated", "alias": "production"}
    passed = run(promote={**section, "gate": gates["passing"]})
    assert passed.registration.alias == "production"
    verdict = passed.registration.verdict
    assert verdict and verdict.passed
    # The records were found, not measured again, and their age is known all the same.
    assert passed.stage("evaluate_dense").status == "cached"
    [age] = [check for check in verdict.checks if check.name == "evaluation age"]
    assert 0 <= float(age.numbers["days"] or 0) < 0.1
    changed = {"protocol": {"seqlen": 24}}
    refused = run(promote={**section, "gate": gates["refusing"]}, evaluate=changed)
    assert refused.status == "completed"
    assert refused.registration.alias == "candidate" and refused.registration.refusal
    assert Path(refused.report).is_file()
    uri = f"sqlite:///{folder / 'state' / 'mlflow' / 'mlflow.db'}"
    registry = MlflowRegistry("gated", uri)
    assert registry.aliases() == {"candidate": "2", "production": "1"}
    at = registry.find("1").evaluated_at
    assert at and (datetime.now(UTC) - at).total_seconds() < 3600


@pytest.mark.slow
def test_a_refusal_ends_the_command_with_1(
    first: RunSummary, llama: Path, folder: Path, gates: dict[str, str], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    section = {"name": "by-command", "alias": "production", "gate": gates["refusing"]}
    config = tmp_path / "config.yaml"
    config.write_text(configuration(llama, folder, promote=section).model_dump_json())
    with elsewhere(folder):
        outcome = command(capfd, "compress", config, "--json", tmp_path / "summary.json")
    assert outcome.code == 1
    assert "error: by-command version 1 is not made production: gate refusing.yaml" in (
        outcome.errors
    )
    assert "alias candidate" in outcome.output and "checks passed" in outcome.output
    assert (tmp_path / "summary.json").is_file()
