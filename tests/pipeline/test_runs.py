"""``bipline runs``: how runs ended, where one failed, why, and its log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.settings.stack import StackSettings
from bipline.values.summary import RunSummary
from pipelines.runs import list_runs
from tests.command import run as command
from tests.pipeline.conftest import TEXTS, Run, elsewhere

pytestmark = pytest.mark.slow


def test_runs_tell_how_they_ended(
    first: RunSummary, run: Run, folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput):
        run(texts={name: str(folder / "nothing.txt") for name in TEXTS})
    log = folder / "state" / "logs" / "compress-20200101T000000Z.log"
    log.parent.mkdir(exist_ok=True)
    log.touch()
    settings = StackSettings(state=str(folder / "state"))
    with elsewhere(folder):
        told = {each.name: each for each in list_runs(settings).runs}
        [whole] = list_runs(settings, first.run_name).runs
        with pytest.raises(InvalidInput, match="not known here"):
            list_runs(settings, "nobody")
    assert told[first.run_name] == whole
    assert whole.status == "completed" and whole.failed_in is None and whole.log == str(log)
    assert [stage.name for stage in whole.stages] == [stage.name for stage in first.stages]
    failed = next(each for each in told.values() if each.status == "failed")
    assert failed.failed_in == "resolve" and "nothing.txt" in failed.reason
    result = tmp_path / "runs.json"
    shown = command(capfd, "runs", "--state", folder / "state", "--json", result)
    assert shown.code == 0, shown
    assert "in resolve: " in shown.output and "the same command again" in shown.output
    names = [each["name"] for each in json.loads(result.read_text())["runs"]]
    assert first.run_name in names and failed.name in names


def test_a_folder_where_nothing_ran(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = command(capfd, "runs", "--state", tmp_path)
    shown.assert_one_line(2, "nothing ran in this state folder")
