"""Stack files: places filled from Terraform's outputs and the environment, or named together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.settings.stack_file import load_stack
from tests.layers import ROOT

STACKS = sorted((ROOT / "infra" / "stacks").glob("*.yaml"))
TEXT = """
name: team
components:
  orchestrator: {flavor: local}
  experiment_tracker:
    flavor: mlflow
    configuration: {tracking_uri: "${uri}", tracking_password: "${env:PASSWORD}", port: "${port}"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(TEXT)
    return path


def test_places_are_filled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = file.with_name("outputs.json")
    outputs = {"uri": {"value": "https://mlflow", "sensitive": False, "type": "string"}, "port": 7}
    values.write_text(json.dumps(outputs))
    monkeypatch.setenv("PASSWORD", "word")
    found = load_stack(file, values).configuration("experiment_tracker")
    assert found == {"tracking_uri": "https://mlflow", "tracking_password": "word", "port": 7}


def test_all_that_is_missing_is_named_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASSWORD", raising=False)
    with pytest.raises(InvalidInput, match="no value for uri, env:PASSWORD, port; give --values"):
        load_stack(file)
    kept = load_stack(file, filled=False).configuration("experiment_tracker")
    assert kept["tracking_uri"] == "${uri}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "not a mapping"),
        ("name: x", "components: Field required"),
        ("name: x\ncomponents: {orchestrator: {flavour: local}}", "flavor: Field required"),
        ("name: x\nname: y\ncomponents: {}", "twice"),
    ],
)
def test_what_is_no_stack_file(tmp_path: Path, text: str, said: str) -> None:
    (path := tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=said) as error:
        load_stack(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InvalidInput, match=r"absent.yaml: no such stack file"):
        load_stack(Path("absent.yaml"))


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
def test_every_stack_file_is_one(path: Path) -> None:
    found = load_stack(path, filled=False)
    assert found.name == path.stem
    assert {"orchestrator", "artifact_store", "experiment_tracker"} <= set(found.components)
    assert path.read_text().startswith("# bipline stack apply ")
