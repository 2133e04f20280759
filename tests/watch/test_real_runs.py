"""The command and the real pipeline: three tiny models below a directory, each compressed once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import run
from tests.pipeline.conftest import TEXTS, configuration, write_text

ROOT = Path(__file__).parents[2]


class Place:
    """A directory of models, and a watch of it."""

    def __init__(self, folder: Path, llama: Path) -> None:
        self.folder, self.llama = folder, llama
        self.models = folder / "models"
        self.models.mkdir()
        for seed, name in enumerate(TEXTS, start=1):
            write_text(folder / f"{name}.txt", seed)
        settings = configuration(llama, folder, recover={"enabled": False})
        values = settings.model_dump(mode="json", exclude={"model"})
        self.compress = folder / "compress.yaml"
        self.compress.write_text(yaml.safe_dump({**values, "model": "given"}))

    def configure(self, **changes: Any) -> None:
        source = {
            "folder": str(self.models), "compress": str(self.compress), "settled": 0,
            "set": ["promote.name={name}-pruned"], "since": "2020-01-01",
        }  # fmt: skip
        values = {"sources": {"tiny": {**source, **changes}}, "state": str(self.folder / "state")}
        values["limits"] = {"disk_free": "1MB"}
        (self.folder / "watch.yaml").write_text(yaml.safe_dump(values))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bipline", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def watch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("watch", "watch.yaml", *arguments)

    def release(self, name: str, note: bytes = b"") -> Path:
        path = Path(shutil.copytree(self.llama, self.models / name))
        weights = path / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-8:] = (note + content[-8:])[:8]
        weights.write_bytes(content)
        return path

    @property
    def status(self) -> dict[str, dict[str, Any]]:
        self.watch("--status", "--json", "status.json")
        told = json.loads((self.folder / "status.json").read_text())
        return {each["release"]["name"]: each for each in told["releases"]}


@pytest.fixture
def place(llama: Path, tmp_path: Path) -> Place:
    found = Place(tmp_path, llama)
    found.configure()
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_models_are_compressed_once(place: Place) -> None:
    for number in range(3):
        place.release(f"model-{number}", bytes([number] * 8))
    done = place.watch("--once")
    assert done.returncode == 0, done
    assert "3 started, 3 done, 0 parked" in done.stdout
    assert {name: each["state"] for name, each in place.status.items()} == {
        f"model-{number}": "done" for number in range(3)
    }
    logs = sorted((place.folder / "state" / "watch" / "logs").iterdir())
    assert len(logs) == 3
    before = {path.name: path.read_bytes() for path in logs}
    # Again, and once more under another name: nothing is new.
    (place.models / "model-0").rename(place.models / "renamed")
    done = place.watch("--once")
    assert done.returncode == 0 and "0 started" in done.stdout, done
    assert {path.name: path.read_bytes() for path in logs} == before
    # What a watch began is what the command finds.
    again = place.run(
        "compress", "compress.yaml", "--set", f"model={place.models / 'model-1'}", "--set",
        "promote.name=model-1-pruned",
    )  # fmt: skip
    assert again.returncode == 0 and "unchanged" in again.stdout, again
    told = place.run("history", "model-1-pruned", "--state", str(place.folder / "state"))
    assert told.returncode == 0, told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_fails_is_parked_and_asked_for_again(place: Place) -> None:
    place.release("model")
    text = place.folder / "held-out.txt"
    content = text.read_bytes()
    text.unlink()
    done = place.watch("--once")
    assert done.returncode == 1 and "parked: tiny-model-" in done.stderr, done
    told = place.status["model"]
    assert told["state"] == "parked" and told["exit_code"] == 2
    assert "held-out.txt" in told["reason"]
    shown = place.watch("--status").stdout
    assert "held-out.txt" in shown and f"--retry {told['run']}" in shown
    assert place.watch("--once").returncode == 0, "parked once is told once"
    wrong = place.watch("--retry", "nobody")
    assert wrong.returncode == 2 and told["run"] in wrong.stderr
    text.write_bytes(content)
    assert place.watch("--retry", "model").returncode == 0
    done = place.watch("--once")
    assert done.returncode == 0 and "1 done" in done.stdout, done
    assert place.status["model"]["state"] == "done"


def test_what_cannot_be_watched_is_said_at_once(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    for changes, words in (
        ({"folder": None}, "a source is one of organisation"),
        ({"s3": "s3://a/b"}, "here: s3, folder"),
        ({"registry": "http://host"}, "give registered too"),
        ({"since": "yesterday"}, "write now, a date"),
        ({"set": ["model=other"]}, "the model is the release"),
        ({"set": ["promote.name={nobody}"]}, "{nobody} stands for nothing"),
        ({"compress": "nothing.yaml"}, "no such configuration file"),
        ({"set": ["promote.nme=a"]}, "did you mean"),
    ):
        place.configure(**changes)
        run(capfd, "watch", "watch.yaml", "--once").assert_one_line(2, words)
    place.configure()
    run(capfd, "watch", "watch.yaml", "--once", "--status").assert_one_line(2, "give one of them")
    assert run(capfd, "watch", "watch.yaml", "--status").output.startswith("no release yet")
