"""A model and its texts come from a hub: the command of configs/compress.yaml, on a stand-in."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compression.test_calibrate import prose
from tests.conftest import ASSETS
from tests.hub_stand_in import commit_of, hub_stand_in

ROOT = Path(__file__).parents[2]
MODEL = "acme/reference"
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: test, path: wikitext-2-raw-v1/test.jsonl}
  - {split: validation, path: wikitext-2-raw-v1/validation.jsonl}
---
"""


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    """The embedded model under a hub name, a C4-like archive and a WikiText-like split."""
    root = tmp_path / "hub"
    model = root / "models" / MODEL
    model.mkdir(parents=True)
    for path in (ASSETS / "reference-llm").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    c4 = root / "datasets" / "allenai" / "c4" / "en"
    c4.mkdir(parents=True)
    rows = "".join(json.dumps({"text": prose(seed)}) + "\n" for seed in range(30))
    (c4 / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(rows.encode()))
    wikitext = root / "datasets" / "Salesforce" / "wikitext"
    (wikitext / "wikitext-2-raw-v1").mkdir(parents=True)
    (wikitext / "README.md").write_text(CARD)
    story = (ASSETS / "texts" / "prose.txt").read_text().split("\n")
    rows = "".join(json.dumps({"text": line}) + "\n" for line in story)
    (wikitext / "wikitext-2-raw-v1" / "test.jsonl").write_text(rows)
    judge = (ASSETS / "texts" / "recovery-judge.txt").read_text().split("\n")
    rows = "".join(json.dumps({"text": line}) + "\n" for line in judge)
    (wikitext / "wikitext-2-raw-v1" / "validation.jsonl").write_text(rows)
    return root


def bipline(endpoint: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(folder / "hf-home"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "bipline", *arguments], env=environment, cwd=folder, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hub_model_becomes_a_registered_package(repositories: Path, tmp_path: Path) -> None:
    settings = [
        "--set", f"model=hf:{MODEL}", "--set", "calibrate.samples=16", "--set", "state=state",
        "--set", "evaluate.protocol.speed=false", "--json", "summary.json",
    ]  # fmt: skip
    with hub_stand_in(repositories) as endpoint:
        config = str(ROOT / "configs" / "compress.yaml")
        outcome = bipline(endpoint, tmp_path, "compress", config, *settings)
    assert outcome.returncode == 0, outcome.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["records"]) == {"dense", "pruned"}
    package = Path(summary["package"]["location"])
    resolution = json.loads((package / "resolution.json").read_text())
    assert resolution["model"]["revision"] == commit_of(repositories / "models" / MODEL)
    assert resolution["model"]["licence"] == "apache-2.0"
    card = (package / "README.md").read_text()
    assert re.search(rf"^base_model: .*{MODEL}", card, re.MULTILINE)


@pytest.mark.slow
def test_a_hub_that_is_down_is_exit_code_3(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "compress.yaml")
    outcome = bipline("http://127.0.0.1:9", tmp_path, "compress", config, "--set", "state=state")
    assert outcome.returncode == 3, outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
