"""What is MLflow's own of the journal in MLflow: tags and runs, and an address for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput, Refused
from bipline.delivery.registries.journal import (
    State,
    entry_for,
    move,
    settle,
)  # fmt: skip
from bipline.delivery.registries.journal_mlflow import ENTRY_TAG, MlflowRegistry, pointed_at
from tests.delivery.worlds import World, running_world
from tests.gated import asked, documents, evidence, verdict

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
ALIAS = "production"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world("mlflow file", tmp_path_factory.mktemp("journal")) as running:
        yield running


@pytest.fixture
def registry(world: World) -> MlflowRegistry:
    """A registered model of its own with four versions, none of them served."""
    registry = world.begun()
    assert isinstance(registry, MlflowRegistry)
    return registry


def promote(registry: MlflowRegistry, version: str, state: State | None = None) -> State:
    state = state or settle(registry, ALIAS)
    digest = registry.check(registry.find(version))
    return move(registry, state, entry_for(state, "promote", version, digest))


def test_a_verdict_is_kept_beside_its_version(registry: MlflowRegistry) -> None:
    import mlflow

    found = verdict(asked({"figure": "parameters", "at_most": 1}), evidence(documents()))
    version = registry.find("1")
    registry.keep(version, found)
    client = mlflow.MlflowClient()
    assert client.get_model_version(registry.name, "1").tags["verdict.production"] == found.digest
    run = client.get_run(version.run_id)
    stored = mlflow.artifacts.load_text(
        f"{run.info.artifact_uri}/verdicts/{found.digest[:16]}.json"
    )
    assert stored == found.to_json()


def test_when_it_was_evaluated(registry: MlflowRegistry) -> None:
    import mlflow

    assert registry.find("1").evaluated_at is None
    at = datetime(2026, 11, 28, 7, tzinfo=UTC)
    registry.tell_evaluated("1", at)
    assert registry.find("1").evaluated_at == at
    for typed in ("yesterday", "2026-11-28T07:00:00"):
        mlflow.MlflowClient().set_model_version_tag(registry.name, "1", "evaluated_at", typed)
        assert registry.find("1").evaluated_at is None


def test_what_is_no_entry_stops_everything(registry: MlflowRegistry) -> None:
    import mlflow

    promote(registry, "1")
    client, journal = mlflow.MlflowClient(), f"{registry.name}.promotions"
    client.delete_model_version_tag(journal, "1", ENTRY_TAG)
    with pytest.raises(Refused, match="is no entry of the journal"):
        settle(registry, ALIAS)
    client.set_model_version_tag(journal, "1", ENTRY_TAG, "{}")
    with pytest.raises(InvalidInput, match="not a journal entry"):
        settle(registry, ALIAS)


def test_another_address_for_a_while(world: World, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    other = f"sqlite:///{tmp_path}/other.db"
    with pointed_at(other):
        assert mlflow.get_tracking_uri() == other
    with pytest.raises(KeyError), pointed_at(other):
        raise KeyError
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before
