"""A run from Python leaves the caller's ZenML, MLflow and environment as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

import bipline
from bipline.base.errors import InvalidInput
from tests.pipeline.conftest import configuration, elsewhere, inside


@pytest.fixture
def tracking(tmp_path: Path) -> Iterator[str]:
    """The caller's own tracking store, with a run of theirs that goes on."""
    uri = f"sqlite:///{tmp_path / 'own.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        client.create_experiment("theirs", artifact_location=(tmp_path / "artifacts").as_uri())
        mlflow.set_experiment("theirs")
        yield uri
        mlflow.set_tracking_uri(before)


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_state_is_theirs_again(
    llama: Path, folder: Path, tracking: str, fails: bool
) -> None:
    settings = configuration(llama, folder, recover={})
    state = folder / "state" if not fails else folder / "file"
    if fails:
        state.write_text("in the way")
    with inside(folder / "own") as client, mlflow.start_run() as own, elsewhere(folder):
        mlflow.set_tracking_uri(tracking)
        environment, place = dict(os.environ), Path.cwd()
        if fails:
            with pytest.raises((InvalidInput, bipline.EnvironmentFailure)):
                bipline.compress(settings, state=state)
        else:
            bipline.compress(settings)
        assert (dict(os.environ), Path.cwd()) == (environment, place)
        assert mlflow.get_tracking_uri() == tracking
        active = mlflow.active_run()
        assert active is not None and active.info.run_id == own.info.run_id
        assert type(client)() is client
        mlflow.log_metric("theirs", 1.0)
    [experiment] = mlflow.MlflowClient(tracking).search_experiments(filter_string="name='theirs'")
    [run] = mlflow.MlflowClient(tracking).search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"theirs": 1.0})
