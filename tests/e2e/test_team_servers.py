"""A run on a team's own stack: its ZenML, its MLflow server on PostgreSQL, its artifacts in S3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import ASSETS
from tests.servers import team_servers
from tests.storage.server import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PASSWORD = "not-to-be-seen-anywhere"
STACKS = """
import sys
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
client = Client()
for name, address in zip(sys.argv[1::2], sys.argv[2::2]):
    login = {"tracking_username": "team", "tracking_password": %r}
    tracker = client.create_stack_component(
        name, "mlflow", Kind.EXPERIMENT_TRACKER, {"tracking_uri": address, **login}
    )
    parts = {Kind.ORCHESTRATOR: "default", Kind.ARTIFACT_STORE: "default"}
    client.create_stack(name, {**parts, Kind.EXPERIMENT_TRACKER: tracker.id})
"""


@dataclass(frozen=True)
class Team:
    """The team's server, the user's ZenML configuration, and a configuration of a run."""

    address: str
    folder: Path
    environment: Mapping[str, str]

    @property
    def config(self) -> Path:
        return self.folder / "compress.yaml"

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run_with({}, *arguments)

    def run_with(
        self, variables: Mapping[str, str], *arguments: object
    ) -> subprocess.CompletedProcess[str]:
        """As a user would run it, with these variables of the environment too."""
        return subprocess.run(
            [sys.executable, "-m", "bipline", *map(str, arguments)],
            cwd=self.folder, env={**os.environ, **self.environment, **variables},
            capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    environment = {
        "ZENML_CONFIG_PATH": str(folder / "zenml"), "ZENML_ANALYTICS_OPT_IN": "false",
        "HOME": str(folder),
    }  # fmt: skip
    texts = {name: str(ASSETS / "texts" / f"{name}.txt") for name in ("calibration", "held-out")}
    settings = {
        "model": str(ASSETS / "reference-llm"),
        "texts": texts,
        "calibrate": {"samples": 2, "seqlen": 16},
        "score": {"criterion": "magnitude"},
        "evaluate": {"texts": ["held-out"], "protocol": {"seqlen": 64}},
        "promote": {"name": "team-model", "alias": "production", "gate": "lenient"},
    }
    (folder / "compress.yaml").write_text(yaml.safe_dump(settings))
    (script := folder / "stacks.py").write_text(STACKS % PASSWORD)
    with team_servers(folder) as address:
        nobody = f"http://127.0.0.1:{free_port()}"
        made = subprocess.run(
            [sys.executable, script, "team", address, "away", nobody],
            env={**os.environ, **environment}, cwd=folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        yield Team(address, folder, environment)


def test_a_run_goes_to_the_servers_of_the_stack(team: Team) -> None:
    from mlflow import MlflowClient

    ended = team.run("compress", team.config, "--stack", "team")
    said = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode in (0, 1), said  # the gate's to say
    assert f"stack team: ZenML sqlite:///{team.folder}" in said and team.address in said
    client = MlflowClient(team.address)
    [experiment] = client.search_experiments(filter_string="name = 'compress'")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name.startswith("compress-")
    [version] = client.search_model_versions("name = 'team-model'")
    assert "candidate" in client.get_model_version("team-model", version.version).aliases
    assert not (team.folder / ".bipline" / "mlflow").exists()
    again = team.run("compress", team.config, "--stack", "team")
    assert "the same version as before" in again.stdout, again.stdout + again.stderr
    told = team.run("history", "team-model", "--registry", team.address)
    assert told.returncode == 0, told.stderr
    logs = "".join(path.read_text() for path in (team.folder / ".bipline" / "logs").iterdir())
    everything = (logs, ended.stdout, ended.stderr, str(run.data.params), str(run.data.tags))
    assert not any(PASSWORD in text for text in everything)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "stack 'default' has no experiment tracker; add one: zenml experiment-tracker"),
        (("--stack", "tea"), 2, "stack 'tea': not registered; known: "),
        (("--stack", "away"), 3, "the MLflow server does not answer"),
        (("--stack", "team", "--local"), 2, "means a stack in that folder"),
        (
            ("--stack", "team", "--set", "promote.tracking_uri=http://other:1"), 2,
            "promote.tracking_uri is http://other:1, and stack 'team' tells",
        ),
        (
            ("--stack", "team", "--set", "promote.registry_uri=http://127.0.0.1:9"), 3,
            "http://127.0.0.1:9: the MLflow server does not answer",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_known_before_any_work(
    team: Team, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = team.run("compress", team.config, *arguments)
    assert ended.returncode == code, ended.stdout + ended.stderr
    error = " ".join(ended.stderr.split())
    assert error.startswith("error: ") and said in error
    assert "resolve" not in ended.stdout.splitlines()


def test_a_folder_of_its_own_tells_the_server_that_is_named(team: Team) -> None:
    """The isolated stack keeps its artifacts, and no credential of the server."""
    from mlflow import MlflowClient

    state, tokens = team.folder / "own", {"MLFLOW_TRACKING_TOKEN": PASSWORD}
    ended = team.run_with(
        tokens, "compress", team.config, "--state", state,
        "--set", f"promote.tracking_uri={team.address}", "--set", "promote.name=of-a-folder",
    )  # fmt: skip
    assert ended.returncode in (0, 1), ended.stderr
    assert team.address in ended.stdout + ended.stderr
    assert MlflowClient(team.address).get_registered_model("of-a-folder")
    kept = [path for path in state.rglob("*") if path.is_file()]
    assert not (state / "mlflow").exists()
    assert not [path for path in kept if PASSWORD.encode() in path.read_bytes()]


def test_a_variable_that_is_not_followed_is_told(team: Team) -> None:
    named = {"MLFLOW_TRACKING_URI": team.address}
    ended = team.run_with(
        named, "compress", team.config, "--local", "--set", "promote.name=local-only"
    )
    said = " ".join((ended.stdout + ended.stderr).split())
    assert "MLFLOW_TRACKING_URI is set and not followed" in said
    assert (team.folder / ".bipline" / "mlflow" / "mlflow.db").is_file()
