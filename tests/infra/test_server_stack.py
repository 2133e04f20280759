"""A team's servers on one machine: started, used by a run, and gone again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from infra.stacks import server
from pipelines.compiled import STACKS
from tests.command import typed
from tests.layers import ROOT
from tests.pipeline.conftest import TEXTS, configuration, write_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = {"s3", "postgres", "mlflow", "zenml"}


@dataclass(frozen=True)
class Team:
    """The servers' folder, and what a user who sourced their variables has."""

    servers: Path
    folder: Path
    environment: dict[str, str]

    def bipline(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return typed(self.folder, self.environment, *arguments)

    @property
    def processes(self) -> dict[str, int]:
        return dict(json.loads((self.servers / "processes.json").read_text()))


def command(asked: str, servers: Path) -> subprocess.CompletedProcess[str]:
    """As the Makefile starts and ends them; a server that stays keeps no pipe open."""
    with (servers.parent / "said").open("w+") as said:
        ended = subprocess.run(
            [sys.executable, "-m", "infra.stacks.server", asked, str(servers)], cwd=ROOT,
            stdout=said, stderr=said, text=True, check=False,
        )  # fmt: skip
        said.seek(0)
        return subprocess.CompletedProcess(ended.args, ended.returncode, said.read(), "")


@pytest.fixture(scope="module")
def team(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with TemporaryDirectory() as place:
        # PostgreSQL has a user of its own, which pytest's folders keep out.
        Path(place).chmod(0o755)
        yield from _served(llama, folder, Path(place) / "servers")


def _served(llama: Path, folder: Path, servers: Path) -> Iterator[Team]:
    started = command("up", servers)
    assert started.returncode == 0, started
    try:
        lines = (servers / "variables").read_text().splitlines()
        told = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        paths = os.pathsep.join([told.pop("PYTHONPATH"), str(ROOT)])
        mine = {"ZENML_CONFIG_PATH": str(folder / "zenml"), "ZENML_ANALYTICS_OPT_IN": "false"}
        for seed, name in enumerate(TEXTS, start=1):
            write_text(folder / f"{name}.txt", seed)
        settings = configuration(
            llama, folder, state=None, recover={}, score={"criterion": "magnitude"},
            compensate={"compensation": "none"}, promote={"name": "team"},
        )  # fmt: skip
        values = settings.model_dump(mode="json")
        (folder / "compress.yaml").write_text(yaml.safe_dump(values))
        yield Team(servers, folder, {**os.environ, **told, **mine, "PYTHONPATH": paths})
    finally:
        command("down", servers)


def test_the_run_of_a_team_has_the_bytes_of_a_local_one(team: Team) -> None:
    """Applied, examined, run: no line of the pipeline differs."""
    applied = team.bipline(
        "stack", "apply", STACKS / "server.yaml", "--values", team.servers / "values.json"
    )
    assert applied.returncode == 0, applied
    examined = team.bipline("doctor", "--stack", "server")
    assert examined.returncode == 0 and "FAILS" not in examined.stdout, examined
    found: dict[str, Any] = {}
    for form in (("--stack", "server"), ("--local",)):
        ended = team.bipline("compress", "compress.yaml", *form, "--json", "summary.json")
        assert ended.returncode == 0, ended
        found[form[0]] = json.loads((team.folder / "summary.json").read_text())
    shared, local = found["--stack"], found["--local"]
    assert shared["plan"] == local["plan"]
    assert shared["records"]["pruned"] == local["records"]["pruned"]
    assert shared["package"]["location"].startswith("s3://")


def test_a_folder_that_postgresql_may_not_enter_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "program", lambda name: "/bin/false")
    with pytest.raises(SystemExit, match=r"^PostgreSQL in .*must reach that folder$"):
        server.Servers(tmp_path)._postgres()
    assert not list(tmp_path.iterdir())


def test_secrets_are_their_owner_s_alone(team: Team) -> None:
    for name in ("values.json", "variables"):
        assert (team.servers / name).stat().st_mode & 0o077 == 0


def test_they_are_started_once_and_leave_nothing(team: Team) -> None:
    numbers = team.processes
    assert set(numbers) == NAMES
    again = command("up", team.servers)
    assert again.returncode != 0 and "running already; make server-down ends them" in again.stdout
    assert team.processes == numbers
    assert command("down", team.servers).returncode == 0
    assert not [name for name, number in numbers.items() if server._alive(number)]
    assert not (team.servers / "variables").exists()
