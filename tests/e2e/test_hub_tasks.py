"""Tasks from the hub, as a user asks for them: fetched once, measured as the rows they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub_stand_in import hub_stand_in
from tests.quality.asking import written
from tests.quality.test_zero_shot_official import ROWS

pytestmark = pytest.mark.slow
REPOSITORIES = {
    "boolq": ("aps/super_glue", "boolq", "validation"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
}


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    """The two data sets as the hub has them: subsets in folders, splits in Parquet."""
    from datasets import Dataset

    for name, (repository, subset, split) in REPOSITORIES.items():
        folder = tmp_path / "hub" / "datasets" / repository
        (folder / subset).mkdir(parents=True)
        file = f"{subset}/{split}-00000-of-00001.parquet"
        Dataset.from_list([ROWS[name][0]] * 2).to_parquet(folder / file)
        head = f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n  - split: {split}\n"
        (folder / "README.md").write_text(f"{head}    path: {file}\n---\n")
    return tmp_path / "hub"


def evaluated(model: Path, folder: Path, *options: str, **environment: str) -> dict[str, Any]:
    """The tasks of ``bipline evaluate``, in a process of its own."""
    result = folder / "result.json"
    command = [sys.executable, "-m", "bipline", "evaluate", str(model), "--tasks", "boolq,arc_easy"]
    command += ["--state", str(folder / "state"), "--json", str(result), *options]
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", **environment}
    subprocess.run(command, check=True, env={**os.environ, **home}, cwd=Path(__file__).parents[2])
    tasks: dict[str, Any] = json.loads(result.read_text())["tasks"]
    return tasks


def test_tasks_of_the_hub_are_measured_as_their_rows(
    repositories: Path, reference: Path, tmp_path: Path
) -> None:
    with hub_stand_in(repositories) as endpoint:
        found = evaluated(reference, tmp_path, HF_ENDPOINT=endpoint)
        fetched = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("tasks/*/*.jsonl")}
        assert len(fetched) == 2
        assert evaluated(reference, tmp_path, HF_ENDPOINT=endpoint) == found
        assert {path: path.stat().st_mtime_ns for path in fetched} == fetched, "fetched once"
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in REPOSITORIES:
        written(rows / f"{name}.jsonl", [ROWS[name][1]] * 2)
    assert evaluated(reference, tmp_path, "--task-data", str(rows)) == found
