"""The MLflow registry, on a real database: one version a digest, and files hashed again."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.delivery.registries.mlflow import (
    Registration,
    check_stored_copy,
    track_and_register,
)
from bipline.delivery.registries.mlflow_run import RunContent
from bipline.delivery.registries.mlflow_service import LONGEST_PARAM, prepare_tracking
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import read_manifest, verify_directory
from tests.mlflow_tracked import tracked_at

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
NAME = "tiny-pruned.v2"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One database for all tests: making its tables takes seconds."""
    state = tmp_path_factory.mktemp("state with space")
    return state, prepare_tracking(state, "compress")


@pytest.fixture
def tracking(database: tuple[Path, str]) -> Iterator[Path]:
    """The state folder, with MLflow pointed at its database for the test."""
    with tracked_at(database[1], "compress"):
        yield database[0]


def make_package(directory: Path, text: str) -> Path:
    """A small package; the registry looks at bytes and digests alone."""
    with atomic_directory(directory, "package") as writer:
        (writer.path / "hf").mkdir()
        (writer.path / "hf" / "model.safetensors").write_bytes(text.encode() * 100)
        (writer.path / "README.md").write_text(f"# {text}\n", encoding="utf-8")
        writer.info = {"parameters": 1}
    return directory


def register(
    package: Path, name: str = NAME, alias: str = "candidate", **more: Any
) -> Registration:
    values: dict[str, Any] = {
        "params": {"ratio": "0.2", "long": "x" * 7000},
        "final": {"perplexity.held-out": 12.5},
        "artifacts": {"plan.json": "{}"},
        "tags": {"criterion": "llm-bip-glu"},
    }
    return track_and_register(
        package=package,
        package_digest=read_manifest(package).digest,
        name=name,
        alias=alias,
        content=RunContent(**{**values, **more}),
    )


def logged_model(name: str, version: str) -> Any:
    import mlflow

    source = mlflow.MlflowClient().get_model_version(name, version).source
    return mlflow.get_logged_model(source.removeprefix("models:/"))


def stored_models(state: Path) -> list[Path]:
    return sorted((state / "mlflow" / "artifacts").rglob("model.safetensors"))


def test_the_same_digest_is_the_same_version(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    first = register(make_package(tmp_path / "a", "one"))
    again = register(tmp_path / "a", alias="second")
    assert (first.version, first.reused) == ("1", False)
    assert (again.version, again.reused) == ("1", True)
    assert again.mlflow_run_id != first.mlflow_run_id
    assert len(stored_models(tracking)) == 1
    other = register(make_package(tmp_path / "b", "two"))
    assert (other.version, other.reused) == ("2", False)
    client = mlflow.MlflowClient()
    assert str(client.get_model_version_by_alias(NAME, "candidate").version) == "2"
    assert str(client.get_model_version_by_alias(NAME, "second").version) == "1"
    register(tmp_path / "a")
    assert str(client.get_model_version_by_alias(NAME, "candidate").version) == "1"
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2


def test_another_name_shares_the_stored_copy(tracking: Path, tmp_path: Path) -> None:
    package = make_package(tmp_path / "a", "shared")
    register(package, "first-name")
    before = stored_models(tracking)
    assert not register(package, "second-name").reused
    assert stored_models(tracking) == before


def test_what_is_logged_with_the_run(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    package = make_package(tmp_path / "a", "logged")
    params = {f"p{index}": str(index) for index in range(150)} | {"long": "x" * 7000}
    registration = register(package, "logged", params=params)
    run = mlflow.get_run(registration.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 151
    assert len(run.data.params["long"]) == LONGEST_PARAM
    assert run.data.metrics == {"perplexity.held-out": 12.5}
    assert run.data.tags["package_digest"] == read_manifest(package).digest
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/plan.json") == "{}"
    version = mlflow.MlflowClient().get_model_version("logged", registration.version)
    model = logged_model("logged", registration.version)
    assert version.tags["package_digest"] == model.tags["package_digest"]
    assert [metric.value for metric in model.metrics] == [12.5]


def test_an_active_run_is_used_and_left_open(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    with mlflow.start_run() as run:
        registration = register(make_package(tmp_path / "a", "active"), "active")
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert registration.mlflow_run_id == run.info.run_id


def test_a_download_by_alias_has_the_digests_of_the_package(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    package = make_package(tmp_path / "a", "download")
    register(package, "download")
    there = mlflow.artifacts.download_artifacts(
        "models:/download@candidate", dst_path=str(tmp_path / "there")
    )
    assert verify_directory(Path(there) / "package").digest == read_manifest(package).digest


def test_a_flipped_byte_in_the_stored_copy_is_found(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    before = set(stored_models(tracking))
    package = make_package(tmp_path / "a", "flipped")
    register(package, "flipped")
    (stored,) = set(stored_models(tracking)) - before
    content = bytearray(stored.read_bytes())
    content[7] ^= 1
    stored.write_bytes(bytes(content))
    with pytest.raises(Refused, match=r"model\.safetensors does not match") as refused:
        register(package, "flipped", alias="champion")
    assert "\n" not in str(refused.value)
    with pytest.raises(mlflow.MlflowException):
        mlflow.MlflowClient().get_model_version_by_alias("flipped", "champion")
    model = logged_model("flipped", "1")
    with pytest.raises(Refused):
        check_stored_copy(model, read_manifest(package).digest)


def test_a_package_damaged_before_the_upload_gets_no_version(
    tracking: Path, tmp_path: Path
) -> None:
    import mlflow

    package = make_package(tmp_path / "a", "damaged")
    (package / "README.md").write_text("# other\n", encoding="utf-8")
    with pytest.raises(Refused, match=r"README\.md does not match"):
        register(package, "damaged")
    assert not mlflow.MlflowClient().search_model_versions("name = 'damaged'")
    (package / "README.md").write_text("# damaged\n", encoding="utf-8")
    assert register(package, "damaged").version == "1"


def test_a_link_in_a_package_is_not_uploaded(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    package = make_package(tmp_path / "a", "linked")
    (tmp_path / "secret").write_bytes((package / "README.md").read_bytes())
    (package / "README.md").unlink()
    (package / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match="only plain files"):
        register(package, "linked")
    assert not mlflow.MlflowClient().search_model_versions("name = 'linked'")


def test_another_digest_than_the_packages_is_refused(tracking: Path, tmp_path: Path) -> None:
    package = make_package(tmp_path / "a", "digest")
    with pytest.raises(Refused, match="is not the package 000000000000"):
        track_and_register(
            package=package,
            package_digest="0" * 64,
            name="digest",
            alias="candidate",
            content=RunContent(),
        )


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("a/b", "candidate"),
        ("a:b", "candidate"),
        ("", "candidate"),
        ("it's", "candidate"),
        ("good", "latest"),
        ("good", "v1"),
        ("good", "a b"),
        ("good", ""),
    ],
)
def test_names_that_mlflow_refuses(tracking: Path, tmp_path: Path, name: str, alias: str) -> None:
    import mlflow

    package = make_package(tmp_path / "a", "names")
    runs = len(mlflow.search_runs(output_format="list"))
    with pytest.raises(InvalidInput) as refused:
        register(package, name, alias)
    assert "\n" not in str(refused.value)
    assert len(mlflow.search_runs(output_format="list")) == runs


def test_a_metric_that_is_no_number_is_refused(tracking: Path, tmp_path: Path) -> None:
    package = make_package(tmp_path / "a", "nan")
    with pytest.raises(Refused, match="metric perplexity is nan"):
        register(package, "nan", metrics={"perplexity": float("nan")})


def test_a_server_that_is_down_is_known_in_seconds(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    package = make_package(tmp_path / "a", "down")
    mlflow.set_tracking_uri(f"http://me:secret@127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(EnvironmentFailure, match="server does not answer") as failed:
        register(package, "down")
    assert time.monotonic() - start < 8
    assert "\n" not in str(failed.value) and "secret" not in str(failed.value)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_locked_database_is_known_in_seconds(tracking: Path, tmp_path: Path) -> None:
    package = make_package(tmp_path / "a", "locked")
    other = sqlite3.connect(tracking / "mlflow" / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(EnvironmentFailure, match="database is locked"):
            register(package, "locked")
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_preparing_again_changes_nothing(database: tuple[Path, str]) -> None:
    import mlflow

    state, uri = database
    assert uri == f"sqlite:///{state}/mlflow/mlflow.db"
    assert prepare_tracking(state, "compress") == uri
    experiment = mlflow.MlflowClient(uri).get_experiment_by_name("compress")
    assert experiment.artifact_location == (state / "mlflow" / "artifacts").as_uri()


def test_a_database_that_is_none_is_an_environment_failure(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("not a database, " * 100, encoding="utf-8")
    with pytest.raises(EnvironmentFailure, match="cannot be used"):
        prepare_tracking(tmp_path, "compress")


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("", encoding="utf-8")
    with pytest.raises(EnvironmentFailure):
        prepare_tracking(tmp_path / "state", "compress")
