"""Several models in one command: each ends for itself, and the table and exit code tell all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.base.errors import EnvironmentFailure
from bipline.face import several
from bipline.settings.compress import CompressSettings
from bipline.settings.notify import VARIABLE
from bipline.values.summary import RunSummary
from tests.command import run as command
from tests.pipeline.conftest import configuration, elsewhere
from tests.tiny import tiny_model
from tests.webhook import webhook

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def written(place: Path, settings: CompressSettings, models: list[Path]) -> Path:
    values = settings.model_dump(mode="json", exclude={"model", "models"})
    values["promote"]["name"] = "{name}-several"
    path = place / "several.yaml"
    path.write_text(yaml.safe_dump({**values, "models": [str(each) for each in models]}))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_one_that_fails_stops_no_other(
    first: RunSummary, llama: Path, folder: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = tiny_model(tmp_path / "other", "llama-gqa", seed=5)
    models = [tmp_path / "nothing", llama, other]
    config = written(tmp_path, configuration(llama, folder, recover={}), models)
    told = tmp_path / "told.json"
    with elsewhere(folder), webhook() as server:
        monkeypatch.setenv(VARIABLE, server.address)
        dry = command(capfd, "compress", config, "--dry-run")
        assert not server.told
        outcome = command(capfd, "compress", config, "--json", told)
    assert dry.code == 2 and dry.output.count("model ") >= 3 and "refused    " in dry.output
    assert dry.output.count("register ") == 2 and "nothing" in dry.errors
    assert outcome.code == 2, outcome
    assert "1 of 3 models did not end well" in outcome.errors
    assert "Traceback" not in outcome.output + outcome.errors
    ended = json.loads(told.read_text())
    assert [(each["exit_code"], each["name"]) for each in ended["models"]] == [
        (2, "nothing-several"), (0, "llama-several"), (0, "other-several")
    ]  # fmt: skip
    table = [line.split() for line in outcome.output.splitlines() if "-several " in line]
    ends = {words[0]: words[1:] for words in table if words[1:2] in (["failed"], ["done"])}
    assert ends["nothing-several"] == ["failed", "2"]
    assert ends["other-several"][:2] == ["done", "0"]
    assert ends["other-several"][-2:] == ["1,", "candidate"]
    assert f"{models[0]}: " in outcome.output and "report.html" in outcome.output
    assert [each["source"] for each in server.told] == [str(models[0])]


def outcomes(monkeypatch: pytest.MonkeyPatch, ends: dict[str, Any]) -> Any:
    def compress(settings: CompressSettings) -> Any:
        raise ends[settings.model]

    runs = [
        CompressSettings.model_validate(
            {"model": name, "texts": {"calibration": "a", "held-out": "b"},
             "promote": {"name": name}}
        )
        for name in ends
    ]  # fmt: skip
    monkeypatch.setattr(several, "checked", lambda *_, **__: [])
    monkeypatch.setattr(several, "compress", compress)
    return several.compress_each(runs)


def test_the_worst_exit_code_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = outcomes(monkeypatch, {"a": ValueError("odd"), "b": EnvironmentFailure("down")})
    assert [each.exit_code for each in summary.models] == [1, 3]
    assert "a fault of bipline" in summary.models[0].reason
    error = several.error_of(summary)
    assert isinstance(error, EnvironmentFailure) and "a, b" in str(error)
    with pytest.raises(KeyboardInterrupt):
        outcomes(monkeypatch, {"a": KeyboardInterrupt(), "b": ValueError()})
