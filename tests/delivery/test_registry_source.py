"""Models read from the registry: found without a download, hashed, and never half there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.delivery.registries import mlflow_source
from bipline.delivery.registries.mlflow import track_and_register
from bipline.delivery.registries.mlflow_run import RunContent
from bipline.delivery.registries.mlflow_service import prepare_tracking, tracking_uri
from bipline.delivery.registries.mlflow_source import download_version, find_version
from bipline.stages.resolve import resolve_model
from bipline.storage.manifest import read_manifest
from tests.mlflow_tracked import tracked_at


@pytest.fixture(scope="module")
def registry(package: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with one version; the process is pointed at another that is not there."""
    state = tmp_path_factory.mktemp("registry")
    address = prepare_tracking(state, "source")
    with tracked_at(address, "source"):
        track_and_register(
            package=package, package_digest=read_manifest(package).digest, name="tiny",
            alias="candidate", content=RunContent(),
        )  # fmt: skip
    return address


@pytest.mark.parametrize("source", ["models:/tiny@candidate", "models:/tiny/1"])
def test_a_version_is_the_model_that_was_registered(
    registry: str, package: Path, tmp_path: Path, source: str
) -> None:
    found = resolve_model(source, tmp_path, registry)
    direct = resolve_model(str(package / "hf"), tmp_path)
    assert (found.identity, found.tokenizer_digest) == (direct.identity, direct.tokenizer_digest)
    assert (found.source, found.revision) == (source, "1")
    again = resolve_model(source, tmp_path, registry)
    assert again == found
    assert [path.name for path in (tmp_path / "registry").iterdir()] == [
        read_manifest(package).digest[:32]
    ]


def test_where_to_ask_is_what_the_environment_says(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    assert str(find_version("models:/tiny@candidate").version) == "1"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("models:/tiny@champion", "has no such version"),
        ("models:/tiny/7", "has no such version"),
        ("models:/other/1", "has no such version"),
        ("models:/tiny", "write models:/NAME@ALIAS"),
        ("models:/@x", "write models:/NAME@ALIAS"),
    ],
)
def test_what_is_not_there_is_bad_input(
    registry: str, tmp_path: Path, source: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        download_version(source, tmp_path, registry)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("postgresql+nosuchdriver://u:TOPSECRET@127.0.0.1:9/x", "failed|refuses|needs"),
        ("mysql+nosuchdriver://u:TOPSECRET@127.0.0.1:9/x", "failed|refuses|needs"),
        ("mssql://u:TOPSECRET@127.0.0.1:9/x", "needs pyodbc"),
        ("databricks://u:TOPSECRET", "MLflow"),
        ("nosuch://u:TOPSECRET@h/x", "MLflow"),
    ],
)
def test_a_tracking_uri_that_cannot_be_used_is_one_line(uri: str, words: str) -> None:
    with pytest.raises(BiplineError, match=words) as caught:
        find_version("models:/tiny@candidate", uri)
    assert "\n" not in str(caught.value) and "TOPSECRET" not in str(caught.value)


def test_a_state_without_a_registry_gets_none_by_being_asked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no registry"):
        find_version("models:/tiny/1", tracking_uri(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_changed_byte_is_refused_wherever_it_changed(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = download_version("models:/tiny/1", tmp_path, registry)
    with (place / "model.safetensors").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(Refused, match="does not match"):
        download_version("models:/tiny/1", tmp_path, registry)
    shutil.rmtree(place.parent)
    verify = mlflow_source.verify_directory

    def damaged(folder: Path) -> object:
        (folder / "hf" / "config.json").write_text("{}")
        return verify(folder)

    monkeypatch.setattr(mlflow_source, "verify_directory", damaged)
    with pytest.raises(BiplineError, match="does not match"):
        download_version("models:/tiny/1", tmp_path, registry)
    assert not list((tmp_path / "registry").iterdir())
