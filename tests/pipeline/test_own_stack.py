"""A run on a team's own stack: its ZenML, its MLflow server on PostgreSQL, its artifacts in S3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.command import Outcome, run
from tests.pipeline.conftest import configuration
from tests.pipeline.own_zenml import own_zenml
from tests.servers import team_servers
from tests.storage.server import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PASSWORD = "not-to-be-seen-anywhere"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with team_servers(tmp_path_factory.mktemp("servers")) as address:
        yield address


@dataclass(frozen=True)
class Team:
    """The team's MLflow, the user's folder, and a way to run there what a user types."""

    address: str
    folder: Path
    capture: pytest.CaptureFixture[str]

    def compress(self, *arguments: str | Path) -> Outcome:
        return run(self.capture, "compress", self.folder / "compress.yaml", *arguments)


@pytest.fixture
def team(
    server: str, llama: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Team:  # fmt: skip
    """A user's ZenML with two stacks that track: the team's, and one whose server is away."""
    from zenml.enums import StackComponentType as Kind

    client = own_zenml(tmp_path, monkeypatch)
    login = {"tracking_username": "team", "tracking_password": PASSWORD}
    for name, address in {"team": server, "away": f"http://127.0.0.1:{free_port()}"}.items():
        tracking = {"tracking_uri": address, **login}
        tracker = client.create_stack_component(name, "mlflow", Kind.EXPERIMENT_TRACKER, tracking)
        parts = {Kind.ORCHESTRATOR: "default", Kind.ARTIFACT_STORE: "default"}
        client.create_stack(name, {**parts, Kind.EXPERIMENT_TRACKER: tracker.id})
    settings = configuration(
        llama, folder, state=None, recover={}, score={"criterion": "magnitude"},
        promote={"name": tmp_path.name},
    )  # fmt: skip
    (tmp_path / "compress.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return Team(server, tmp_path, capfd)


def test_a_run_goes_to_the_servers_of_the_stack(team: Team) -> None:
    from mlflow import MlflowClient
    from zenml.client import Client

    ended = team.compress("--stack", "team")
    said = " ".join((ended.output + ended.errors).split())
    assert ended.code == 0, said
    assert f"stack team: ZenML sqlite:///{team.folder}" in said and team.address in said
    client, name = MlflowClient(team.address), team.folder.name
    [version] = client.search_model_versions(f"name = '{name}'")
    assert client.get_model_version_by_alias(name, "candidate").version == version.version
    told = client.get_run(version.run_id)
    assert told.info.status == "FINISHED" and told.info.run_name.startswith("compress-")
    assert not (team.folder / ".bipline" / "mlflow").exists()
    assert Client().active_stack_model.name == "default"
    again = team.compress("--stack", "team")
    assert "the same version as before" in again.output, again
    logs = "".join(path.read_text() for path in (team.folder / ".bipline" / "logs").iterdir())
    everything = (logs, said, again.output, str(told.data.params), str(told.data.tags))
    assert not any(PASSWORD in text for text in everything)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "stack 'default' has no experiment tracker; add one: zenml experiment-tracker"),
        (["--stack", "tea"], 2, "stack 'tea': not registered; known: "),
        (["--stack", "away"], 3, "the MLflow server does not answer"),
        (["--stack", "team", "--local"], 2, "means a stack in that folder"),
        (
            ["--stack", "team", "--set", "promote.tracking_uri=http://other:1"], 2,
            "promote.tracking_uri is http://other:1, and stack 'team' tells",
        ),
        (
            ["--stack", "team", "--set", "promote.registry_uri=http://127.0.0.1:9"], 3,
            "http://127.0.0.1:9: the MLflow server does not answer",
        ),
    ],
    ids=["no tracker", "unknown", "away", "both", "two trackers", "registry away"],
)  # fmt: skip
def test_what_cannot_be_used_is_known_before_any_work(
    team: Team, arguments: list[str], code: int, said: str
) -> None:
    ended = team.compress(*arguments)
    ended.assert_one_line(code, said)
    assert "resolve" not in ended.output.splitlines()


def test_zenml_that_does_not_answer(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration

    monkeypatch.setattr(GlobalConfiguration, "_global_config", None)
    monkeypatch.setattr(Client, "_global_client", None)
    monkeypatch.setenv("ZENML_STORE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ZENML_STORE_API_KEY", PASSWORD)
    ended = team.compress("--stack", "team")
    ended.assert_one_line(3, "ZenML does not answer")
    assert PASSWORD not in ended.errors


def test_a_folder_of_its_own_tells_the_server_that_is_named(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The isolated stack keeps its artifacts, and no credential of the server."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", PASSWORD)
    state = team.folder / "own"
    ended = team.compress("--state", state, "--set", f"promote.tracking_uri={team.address}")
    assert ended.code == 0, ended
    assert team.address in ended.output + ended.errors
    assert MlflowClient(team.address).get_registered_model(team.folder.name)
    assert not (state / "mlflow").exists()
    kept = [path for path in state.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if PASSWORD.encode() in path.read_bytes()]


def test_a_registry_of_its_own(team: Team) -> None:
    from mlflow import MlflowClient

    registry = f"sqlite:///{team.folder}/registry.db"
    ended = team.compress("--stack", "team", "--set", f"promote.registry_uri={registry}")
    assert ended.code == 0, ended
    assert MlflowClient(registry_uri=registry).get_registered_model(team.folder.name)
    assert not MlflowClient(team.address).search_registered_models(f"name = '{team.folder.name}'")


def test_a_variable_that_is_not_followed_is_told(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.address)
    ended = team.compress("--local")
    said = " ".join((ended.output + ended.errors).split())
    assert ended.code == 0 and "MLFLOW_TRACKING_URI is set and not followed" in said
    assert (team.folder / ".bipline" / "mlflow" / "mlflow.db").is_file()


def test_a_tracker_that_goes_away_is_the_environment(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own error under ZenML's tracker is one line and exit code 3, not a fault."""
    from mlflow.exceptions import MlflowException
    from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker

    def gone(self: object, **_: object) -> None:
        raise MlflowException("API request to http://x failed with exception: refused")

    monkeypatch.setattr(MLFlowExperimentTracker, "prepare_step_run", gone)
    ended = team.compress("--stack", "team")
    ended.assert_one_line(3, "MLflow failed: API request to http://x failed")
