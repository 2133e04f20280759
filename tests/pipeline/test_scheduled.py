"""``compress --schedule``: an orchestrator that keeps schedules gets one, the others are told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.base.errors import InvalidInput
from bipline.settings.cron import next_time
from tests.command import Outcome, run
from tests.pipeline.conftest import configuration
from tests.pipeline.own_zenml import own_zenml

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
Type = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("text", "comes"),
    [
        ("0 3 * * 1", "2026-11-30T03:00"), ("*/15 * * * *", "2026-11-28T12:15"),
        ("30 0 2 * * *", "2026-11-29T02:00"), ("0 0 29 2 *", "2028-02-29T00:00"),
    ],
)  # fmt: skip
def test_when_an_expression_comes_next(text: str, comes: str) -> None:
    found = next_time(text, datetime(2026, 11, 28, 12, 1, tzinfo=UTC))
    assert f"{found:%Y-%m-%dT%H:%M}" == comes


@pytest.mark.parametrize(
    "text", ["", "daily", "@daily", "* * * *", "60 * * * *", "0 0 30 2 *", "0 0 * * * * 2027",
             "0 25 * * *", "a b c d e", "0 3 * * %"],
)  # fmt: skip
def test_what_never_comes_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--schedule"):
        next_time(text)


@pytest.fixture
def typed(
    llama: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Type:  # fmt: skip
    """What a user types in a folder with a configuration, and a ZenML with three stacks."""
    from zenml.enums import StackComponentType as Kind

    client, uri = own_zenml(tmp_path, monkeypatch), f"sqlite:///{tmp_path / 'mlflow.db'}"
    client.create_flavor("tests.pipeline.schedulable.KeepingFlavor", Kind.ORCHESTRATOR)
    tracking = {"tracking_uri": uri}
    tracker = client.create_stack_component("told", "mlflow", Kind.EXPERIMENT_TRACKER, tracking)
    parts = {Kind.ARTIFACT_STORE: "default", Kind.EXPERIMENT_TRACKER: tracker.id}
    client.create_stack("here", {**parts, Kind.ORCHESTRATOR: "default"})
    for name, refuses in (("keeping", False), ("full", True)):
        kept = {"path": str(tmp_path / "kept.txt"), "refuses": refuses}
        made = client.create_stack_component(name, "keeping", Kind.ORCHESTRATOR, kept)
        client.create_stack(name, {**parts, Kind.ORCHESTRATOR: made.id})
    settings = configuration(
        llama, folder, state=None, recover={}, score={"criterion": "magnitude"},
        promote={"name": "tiny"},
    )  # fmt: skip
    config = tmp_path / "compress.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude={"models"})))

    def type_(*words: str | Path) -> Outcome:
        return run(capfd, *(config if word == "CONFIG" else word for word in words))

    return type_


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_schedule_is_made_listed_and_removed(typed: Type, tmp_path: Path) -> None:
    scheduling = ("compress", "CONFIG", "--schedule", "0 3 * * 1", "--stack")
    for words, code, said in (
        (["compress", "CONFIG", "--schedule", "monday"], 2, "write five fields"),
        (["compress", "CONFIG", "--schedule-name", "a"], 2, "give --schedule CRON too"),
        ([*scheduling, "here"], 2, "keeps no schedule (local)"),
        (["compress", "CONFIG", "--schedule", "0 3 * * 1", "--local"], 2, "infra/schedules"),
        ([*scheduling, "full"], 3, "did not take the schedule: http://host is full"),
        (["schedule", "remove", "nobody", "--stack", "here"], 2, "not known here; known: none"),
    ):
        typed(*words).assert_one_line(code, said)
    assert "nothing was" in typed(*scheduling, "keeping", "--dry-run").output
    kept = tmp_path / "kept.txt"
    assert not kept.exists()
    made = typed(*scheduling, "keeping", "--json", tmp_path / "made.json")
    assert made.code == 0, made
    assert "compress-tiny  0 3 * * 1  next 20" in made.output
    [line] = kept.read_text().splitlines()
    assert line.startswith("keep compress-tiny 0 3 * * 1 | resolve,") and "promote" in line
    typed(*scheduling, "keeping").assert_one_line(2, "is there already (0 3 * * 1)", "remove it")
    listed = typed("schedule", "list", "--stack", "here", "--json", tmp_path / "list.json")
    assert listed.code == 0 and "compress by keeping" in listed.output, listed
    told: list[dict[str, Any]] = json.loads((tmp_path / "list.json").read_text())["schedules"]
    assert told == json.loads((tmp_path / "made.json").read_text())["schedules"]
    removed = typed("schedule", "remove", "compress-tiny", "--stack", "keeping")
    assert removed.code == 0 and kept.read_text().splitlines()[1] == "forget compress-tiny"
    assert "no schedule on stack" in typed("schedule", "list", "--stack", "here").output
