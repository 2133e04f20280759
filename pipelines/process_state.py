"""What a pipeline changes of its process and gives back: the environment, what libraries recall."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bipline.storage.stage_key import PROJECT_ROOT

# An object, the name of its attribute, and what the attribute is for the length of a run.
Attribute = tuple[Any, str, Any]


@contextmanager
def changed(lead: Callable[[], None], attributes: Callable[[], list[Attribute]]) -> Iterator[None]:
    """Lead the process by its environment, then by attributes, for the length of the block.

    ``attributes`` is asked after ``lead``, so that what it imports finds the new environment.
    """
    before, kept = dict(os.environ), []
    try:
        lead()
        for owner, name, value in attributes():
            kept.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for place in kept:
            setattr(*place)
        os.environ.clear()
        os.environ.update(before)


def of_every_run() -> list[Attribute]:
    """Where steps lie, and what MLflow remembers of the caller's server, experiment and run.

    ZenML would import every framework that MLflow knows, only to switch off its logging.
    """
    from mlflow.tracking import fluent
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as tracking
    from mlflow.utils.thread_utils import ThreadLocalVariable
    from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker
    from zenml.utils import source_utils

    return [
        (source_utils, "_CUSTOM_SOURCE_ROOT", str(PROJECT_ROOT)),
        (MLFlowExperimentTracker, "disable_autologging", lambda self: None),
        (tracking, "_tracking_uri", None),
        (registry, "_registry_uri", None),
        (fluent, "_active_experiment_id", None),
        (fluent, "_active_run_stack", ThreadLocalVariable(list)),
        (fluent, "_last_active_run_id", ThreadLocalVariable(lambda: None)),
    ]
