"""Notices of runs: webhook and alerter hear of each event, and no secret lies anywhere after."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.base.errors import EnvironmentFailure
from bipline.delivery import notices
from bipline.settings.notify import VARIABLE
from bipline.values.summary import RunSummary
from tests.command import Outcome
from tests.command import run as command
from tests.pipeline.conftest import configuration, elsewhere, inside
from tests.webhook import SECRET_PATH, Webhook, webhook

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
GATES = {
    "passing": {"limits": [{"figure": "parameters_ratio", "at_most": 0.99}]},
    "refusing": {"limits": [{"figure": "perplexity.*", "at_most": 1.5}]},
}
SECRETS = {
    "HF_TOKEN": "hf_secret-of-the-hub",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-bucket",
    "MLFLOW_TRACKING_PASSWORD": "secret-of-the-tracker",
    "BIPLINE_NOTED": "told-as-address-alone",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(notices, "WAITS", (0.01,))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with webhook() as running:
        monkeypatch.setenv("BIPLINE_NOTED", running.address)
        yield running


@pytest.fixture
def alerts(first: RunSummary, folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The file that the stack's alerter writes, for the length of a test."""
    from zenml.enums import StackComponentType as Kind

    path = tmp_path / "alerts.txt"
    with inside(folder) as client:
        if not [each for each in client.list_flavors(type=Kind.ALERTER, size=50).items
                if each.name == "file-of-the-tests"]:  # fmt: skip
            source = "tests.pipeline.alerting.FileAlerterFlavor"
            client.create_flavor(source, component_type=Kind.ALERTER)
        alerter = client.create_stack_component(
            "told", "file-of-the-tests", Kind.ALERTER, {"path": str(path)}
        )
        client.update_stack("bipline-local", component_updates={Kind.ALERTER: [alerter.id]})
    yield path
    with inside(folder) as client:
        parts = {k: [c.id for c in v] for k, v in client.active_stack_model.components.items()}
        client.update_stack("bipline-local", component_updates={**parts, Kind.ALERTER: []})
        client.delete_stack_component("told", Kind.ALERTER)


class Typed:
    """A configuration in a file, and what a user types."""

    def __init__(self, llama: Path, folder: Path, place: Path, capture: Any) -> None:
        self._llama, self._folder, self._place, self._capture = llama, folder, place, capture

    def compress(self, gate: str, name: str, webhook_: str | None = "env:BIPLINE_NOTED") -> Outcome:
        path = self._place / f"{gate}.yaml"
        path.write_text(yaml.safe_dump(GATES[gate]), encoding="utf-8")
        section = {"name": name, "alias": "production", "gate": str(path)}
        settings = configuration(
            self._llama, self._folder, promote=section, notify={"webhook": webhook_}
        )
        config = self._place / "config.yaml"
        config.write_text(settings.model_dump_json(), encoding="utf-8")
        with elsewhere(self._folder):
            return command(self._capture, "compress", config)


@pytest.fixture
def typed(llama: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Typed:
    return Typed(llama, folder, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_event_is_told_and_no_secret_kept(
    server: Webhook, alerts: Path, typed: Typed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    passed = typed.compress("passing", "told")
    shown.append(passed.output + passed.errors)
    assert passed.code == 0, passed
    refused = typed.compress("refusing", "told-not", server.address)
    shown.append(refused.output + refused.errors)
    assert refused.code == 1, refused
    server.codes = [404] * 9

    def fail(*_: Any, **__: Any) -> None:
        raise EnvironmentFailure(f"the server of {SECRETS['HF_TOKEN']} is away")

    monkeypatch.setattr("bipline.stages.line.promote.promote", fail)
    failed = typed.compress("passing", "told")
    assert failed.code == 3 and "did not take the notice of a failure: it answers 404" in (
        " ".join(failed.output.split())
    )
    assert server.events == ["promotion", "refusal", "failure"]
    promotion, refusal, failure = server.told
    assert promotion["model"] == "told" and promotion["alias"] == "production"
    assert promotion["run"].startswith("compress-") and promotion["version"] == "1"
    assert refusal["model"] == "told-not" and "gate refusing.yaml passed" in refusal["reason"]
    assert failure["exit_code"] == 3 and failure["run"] > promotion["run"]
    assert "the server of *** is away" in failure["text"]
    told = alerts.read_text().splitlines()
    assert [line.partition(":")[0] for line in told] == [
        "told version 1 is now production", "told-not version 1 did not become production",
        "compress failed (exit 3)",
    ]  # fmt: skip
    shown.append(alerts.read_text())
    assert_unseen(folder / "state", [*shown, failed.output + failed.errors], SECRETS)


def assert_unseen(state: Path, shown: list[str], secrets: dict[str, str]) -> None:
    """No file of a state folder, and nothing that was shown, holds a secret's value."""
    values = [SECRET_PATH, *secrets.values()]
    files = [path for path in state.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        content = path.read_bytes()
        assert not [each for each in values if each.encode() in content], path
    assert not [each for each in values if each in "".join(shown)]


def test_an_alerter_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from steps import notices as inside_run

    class Broken:
        name = "broken"
        active_stack = property(lambda self: self)
        alerter = property(lambda self: self)

        def post(self, message: str) -> bool:
            raise OSError(SECRET_PATH)

    said: list[str] = []
    monkeypatch.setattr(inside_run, "note", said.append)
    monkeypatch.setattr(inside_run, "Client", Broken)
    inside_run.alert(notices.failure(ValueError("x"), "compress"))
    assert len(said) == 1 and SECRET_PATH not in said[0]
