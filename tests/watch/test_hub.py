"""Releases of a hub: its commits; a hub that says two things of one starts nothing.

Watchers work in a process of their own, as the libraries read HF_ENDPOINT when they are imported;
one such process does all looks. No disk is free enough, so what would be started stays ``seen``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bipline.storage.digests import digest_json
from tests.hub_stand_in import OUT_OF_SERVICE, _Handler, commit_of, hub_stand_in
from tests.watch.world import CONFIG

ROOT = Path(__file__).parents[2]
WORKER = """
import json, os, sys
from bipline.settings.watch import WatchSettings
from bipline.watch.opening import open_watcher, status_of, open_journal
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    settings = WatchSettings.model_validate_json(line)
    watcher = open_watcher(settings)
    watcher.look()
    watcher.start_due()
    status = status_of(open_journal(settings)).model_dump(mode="json")
    tally = watcher.tally
    answer = {**status, "old": tally.old, "started": tally.started, "wrong": tally.unanswered}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Look:
    """What a look came to."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.old, self.started = answer["old"], answer["started"]
        self.wrong = " ".join(answer["wrong"])
        self.releases = answer["releases"]

    @property
    def states(self) -> Counter[tuple[str, str]]:
        """Name and state of every release that was written down."""
        found = ((each["release"]["name"], each["state"]) for each in self.releases)
        return Counter((name.rpartition("/")[2], state) for name, state in found)


class Hub:
    """A stand-in, and a process that looks at it."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment["HF_HOME"] = str(folder / "home")
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def look(self, owner: Path, **source: Any) -> Look:
        """One look at all models of an owner."""
        own = {"organisation": owner.name, "compress": str(CONFIG), **source}
        settings = {
            "sources": {"tiny": own}, "state": str(self.folder / "states" / owner.name),
            "limits": {"disk_free": 2**62},
        }  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(settings) + "\n")
        self.process.stdin.flush()
        return Look(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    with hub_stand_in(folder / "hub") as endpoint:
        running = Hub(folder, endpoint)
        yield running
        running.process.communicate(timeout=20)


@pytest.fixture
def owner(hub: Hub, llama: Path, request: pytest.FixtureRequest) -> Path:
    """An owner of one model."""
    folder = hub.folder / "hub" / "models" / f"owner-{digest_json(request.node.name)[:8]}"
    shutil.copytree(llama, folder / "tiny-0")
    return folder


def add(owner: Path, number: int) -> Path:
    """Another model of the owner, of another content."""
    path = Path(shutil.copytree(owner / "tiny-0", owner / f"tiny-{number}"))
    (path / "README.md").write_text(f"---\nlicense: mit\n---\nnumber {number}")
    return path


@pytest.mark.slow
def test_new_commits_of_an_owner_are_releases(hub: Hub, owner: Path) -> None:
    for number in range(1, 4):
        add(owner, number)
    first = hub.look(owner)
    assert (first.old, first.releases, first.wrong) == (4, [], "")
    changed, filtered, pickled = (add(owner, number) for number in (4, 5, 6))
    config = json.loads((filtered / "config.json").read_text())
    (filtered / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    filters = {"families": ["llama"], "tags": ["text-generation"], "licences": ["MIT"]}
    found = hub.look(owner, filters=filters)
    assert found.states == {
        ("tiny-4", "seen"): 1, ("tiny-5", "passed-over"): 1, ("tiny-6", "passed-over"): 1,
    }  # fmt: skip
    told = json.dumps(found.releases)
    assert f"hf:{owner.name}/tiny-4@{commit_of(changed)}" in told
    assert "family mistral, not one of llama" in told and "only pickled weights" in told
    # A model under another name is the same commit; its next commit is another release.
    changed.rename(owner / "renamed")
    assert hub.look(owner, filters=filters).states == found.states
    (owner / "renamed" / "README.md").write_text("---\nlicense: mit\n---\nagain")
    assert hub.look(owner, filters=filters).states == {**found.states, ("renamed", "seen"): 1}
    (hub.folder / "hub" / OUT_OF_SERVICE).touch()
    assert "did not serve it" in hub.look(owner, filters=filters).wrong
    (hub.folder / "hub" / OUT_OF_SERVICE).unlink()


Lie = Callable[[_Handler, str], Any]
INFO = {"siblings": [], "lastModified": "2026-11-01T00:00:00.000Z"}


def other_listing(handler: _Handler, path: str) -> Any:
    """The listing names a commit that the branch is not at."""
    return [{"id": "a/tiny-0", "sha": "f" * 40, **INFO}] if path == "/api/models" else None


def no_commit(handler: _Handler, path: str) -> Any:
    """The listing names what is no commit."""
    return [{"id": "a/tiny-0", "sha": "../../etc", **INFO}] if path == "/api/models" else None


def another_each_time(handler: _Handler, path: str) -> Any:
    """Whoever asks is told of another commit, and whatever is asked for is confirmed."""
    if not path.startswith("/api/"):
        return None
    hub: Any = handler.server
    hub.told = getattr(hub, "told", 0) + 1
    commit = path.rpartition("/")[2] if "/revision/" in path else f"{hub.told:040x}"
    info = {"id": "a/tiny-0", "sha": commit, **INFO}
    return [info] if path == "/api/models" else info


def another_for_the_commit(handler: _Handler, path: str) -> Any:
    """Asked for the commit, it tells of another one."""
    return {"id": "a/tiny-0", "sha": "e" * 40, **INFO} if "/revision/" in path else None


def another_in_the_file(handler: _Handler, path: str) -> Any:
    """The API confirms what its files are not of."""
    if not path.startswith("/api/"):
        return None
    info = {"id": path.removeprefix("/api/models/").partition("/revision")[0], "sha": "d" * 40}
    return [{**info, "id": "a/tiny-0", **INFO}] if path == "/api/models" else {**info, **INFO}


@pytest.mark.slow
@pytest.mark.parametrize(
    "lie",
    [other_listing, no_commit, another_each_time, another_for_the_commit, another_in_the_file],
)
def test_a_hub_that_lies_about_revisions_starts_nothing(
    hub: Hub, owner: Path, lie: Lie, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = _Handler._answer

    def answer(self: _Handler) -> None:
        told = lie(self, self.path.partition("?")[0])
        if told is None:
            honest(self)
        else:
            text = json.dumps(told).replace('"a/', f'"{owner.name}/')
            self._send(200, text.encode(), {"Content-Type": "application/json"})

    monkeypatch.setattr(_Handler, "_answer", answer)
    for _ in range(3):
        found = hub.look(owner, since="2020-01-01")
        assert {state for _, state in found.states} <= {"passed-over"}, lie.__doc__
        assert found.wrong or found.states, "nothing is told"
    monkeypatch.undo()
    assert hub.look(owner, since="2020-01-01").states["tiny-0", "seen"] == 1


@pytest.mark.slow
def test_a_hub_that_asks_to_wait_is_heard(
    hub: Hub, owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: _Handler) -> None:
        self._send(408, b"", {"Retry-After": "77"})

    monkeypatch.setattr(_Handler, "_answer", busy)
    found = hub.look(owner, organisation=None, repositories=[f"{owner.name}/tiny-0"])
    assert "it asks to wait 77 seconds" in found.wrong
