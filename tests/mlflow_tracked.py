"""MLflow pointed at a server for the length of a block, and the process as it was afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

POINTING = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")


def mlflow_environment() -> dict[str, str]:
    """Where the environment points MLflow."""
    return {name: os.environ[name] for name in POINTING if name in os.environ}


@contextmanager
def tracked_at(address: str, experiment: str) -> Iterator[None]:
    """MLflow's calls go to ``address`` and to ``experiment`` there.

    ``set_tracking_uri`` and ``set_experiment`` write variables that outlive the test and would
    lead every later run in the same process; setting the address of before writes one too.
    """
    import mlflow
    from mlflow.tracking import fluent
    from mlflow.tracking._tracking_service import utils as service

    before = mlflow_environment(), service._tracking_uri, fluent._active_experiment_id
    mlflow.set_tracking_uri(address)
    mlflow.set_experiment(experiment)
    try:
        yield
    finally:
        for name in mlflow_environment():
            del os.environ[name]
        variables, service._tracking_uri, fluent._active_experiment_id = before
        os.environ.update(variables)
