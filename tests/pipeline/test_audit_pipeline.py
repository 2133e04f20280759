"""Every version that an alias points at, audited by the pipeline; and no secret in what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bipline
from bipline.base.errors import InvalidInput
from bipline.values.summary import RunSummary
from tests.audited import MLFLOW, NAME, copied_state, edited
from tests.command import run as command
from tests.pipeline.conftest import inside

pytestmark = pytest.mark.slow
SECRET = "hunter2-of-the-environment"
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "ZENML_STORE_API_KEY",
    "MY_API_KEY",
)  # fmt: skip


@pytest.fixture(scope="module")
def state(audited_run: RunSummary, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_state(folder / "state", tmp_path_factory.mktemp("audits") / "state")


def test_all_versions_and_no_secret(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.setenv(name, SECRET)
    files = {name: tmp_path / f"audit.{name}" for name in ("html", "json")}
    asked = ("audit", f"models:/{NAME}", "--state", state)
    change = "UPDATE model_version_tags SET value = 'x' WHERE key = 'base_model'"
    with edited(state / MLFLOW, (change, ())):
        ended = command(capfd, *asked, "--html", files["html"], "--json", files["json"])
    ended.assert_one_line(1, "1 of 1 versions differ")
    assert "version's tags  base_model says x" in ended.output
    told = json.loads(files["json"].read_text())
    [version] = told["versions"]
    assert version["model"] == NAME and version["aliases"] == ["candidate"]
    with inside(state.parent) as client:
        [found] = client.list_pipeline_runs(pipeline="audit", size=1).items
        assert found.status.value == "completed"
    places = [path for root in (state, tmp_path) for path in root.rglob("*") if path.is_file()]
    holding = [path for path in places if SECRET.encode() in path.read_bytes()]
    assert not holding and SECRET not in ended.output + ended.errors


def test_a_registry_without_packages_is_said(state: Path) -> None:
    with pytest.raises(InvalidInput, match="the registry knows no model 'none'"):
        bipline.audit_registry("none", state=state)
