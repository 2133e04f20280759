"""A run from Python leaves the caller's ZenML, MLflow and environment as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

import bipline
from tests.pipeline.conftest import configuration, elsewhere, inside


@contextmanager
def tracked(folder: Path) -> Iterator[str]:
    """The caller's own tracking store, with a run of theirs that goes on; its address."""
    uri = f"sqlite:///{folder / 'own.db'}"
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    client.create_experiment("theirs", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("theirs")
    with mlflow.start_run():
        yield uri


@pytest.mark.parametrize("fails", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_callers_state_is_theirs_again(
    llama: Path, folder: Path, tmp_path: Path, request: pytest.FixtureRequest, fails: bool
) -> None:
    if not fails:
        request.getfixturevalue("first")  # in which nothing is to be known yet
    settings = configuration(llama, folder, recover={})
    (tmp_path / "file").write_text("in the way")
    # Seen from inside a state of their own, so that this test leaves none behind.
    with inside(folder / "own") as client, elsewhere(folder), tracked(tmp_path) as uri:
        own, environment, place = mlflow.active_run(), dict(os.environ), Path.cwd()
        if fails:
            with pytest.raises((bipline.InvalidInput, bipline.EnvironmentFailure)):
                bipline.compress(settings, state=tmp_path / "file")
        else:
            bipline.compress(settings)
        assert (dict(os.environ), Path.cwd()) == (environment, place)
        assert mlflow.get_tracking_uri() == uri
        assert mlflow.active_run() is own
        assert type(client).get_instance() is client
        mlflow.log_metric("theirs", 1.0)
    [experiment] = mlflow.MlflowClient(uri).search_experiments(filter_string="name='theirs'")
    [run] = mlflow.MlflowClient(uri).search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"theirs": 1.0})
