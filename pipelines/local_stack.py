"""The local stack: ZenML and MLflow with all their state below one folder.

Whatever stack, server or tracking store the user has is left alone: this process is pointed
elsewhere before ZenML is imported, and never told about the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.storage.stage_key import PROJECT_ROOT

if TYPE_CHECKING:
    from zenml.enums import StackComponentType

STACK = "bipline-local"
# Settings by which the environment would lead to another stack, server or run.
FOREIGN = (
    "ZENML_STORE_", "ZENML_SECRETS_STORE_", "ZENML_BACKUP_SECRETS_STORE_", "ZENML_ACTIVE_",
    "ZENML_SERVER", "MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_RUN_", "MLFLOW_EXPERIMENT_",
)  # fmt: skip


@contextmanager
def isolated(state: Path) -> Iterator[None]:
    """Point this process at the ZenML state below ``state`` for the length of the block.

    Afterwards the environment, and what ZenML and MLflow remember of it, are the caller's again:
    stack and client, tracking store, experiment and run.
    """
    before, held = dict(os.environ), []
    try:
        _lead(state)
        for owner, name, value in _remembered():
            held.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for place in held:
            setattr(*place)
        os.environ.clear()
        os.environ.update(before)


def _lead(state: Path) -> None:
    """Set the environment for the libraries that are imported from here on, and for children."""
    home = state / "zenml"
    home.mkdir(parents=True, exist_ok=True)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ.update(
        ZENML_CONFIG_PATH=str(home / "config"),
        ZENML_LOCAL_STORES_PATH=str(home / "stores"),
        ZENML_REPOSITORY_PATH=str(home),
        ZENML_ANALYTICS_OPT_IN="false",
        ZENML_AUTO_OPEN_DASHBOARD="false",
        AUTO_OPEN_DASHBOARD="false",
        ZENML_DISABLE_INTERACTIVE_INPUT="true",
        ZENML_ENABLE_REPO_INIT_WARNINGS="false",
        ZENML_ENABLE_RICH_TRACEBACK="false",
        ZENML_LOGGING_COLORS_DISABLED="true",
        MLFLOW_DISABLE_TELEMETRY="true",
        DO_NOT_TRACK="true",
    )


def _remembered() -> list[tuple[Any, str, Any]]:
    """Where ZenML and MLflow keep in memory what they are pointed at, and what to put there.

    ZenML would import every framework that MLflow knows, only to switch off its logging.
    """
    from mlflow.tracking import fluent
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as tracking
    from mlflow.utils.thread_utils import ThreadLocalVariable
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration
    from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker
    from zenml.stack import stack
    from zenml.utils import source_utils

    return [
        (GlobalConfiguration, "_global_config", None),
        (Client, "_global_client", None),
        (stack, "_STACK_CACHE", {}),
        (source_utils, "_CUSTOM_SOURCE_ROOT", str(PROJECT_ROOT)),
        (MLFlowExperimentTracker, "disable_autologging", lambda self: None),
        (tracking, "_tracking_uri", None),
        (registry, "_registry_uri", None),
        (fluent, "_active_experiment_id", None),
        (fluent, "_active_run_stack", ThreadLocalVariable(list)),
        (fluent, "_last_active_run_id", ThreadLocalVariable(lambda: None)),
    ]


def activate_local_stack(state: Path) -> None:
    """Create the stack where it is missing, and make it this state's active one."""
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    client = Client()
    artifacts = {"path": str(state / "zenml" / "artifacts")}
    components = {
        Kind.ORCHESTRATOR: "default",
        Kind.ARTIFACT_STORE: _component(Kind.ARTIFACT_STORE, "local", artifacts),
        Kind.EXPERIMENT_TRACKER: _component(
            Kind.EXPERIMENT_TRACKER, "mlflow", {"tracking_uri": tracking_uri(state)}
        ),
    }
    if not client.list_stacks(name=STACK).items:
        client.create_stack(STACK, components)
    if client.active_stack_model.name != STACK:
        client.activate_stack(STACK)


def _component(kind: StackComponentType, flavor: str, configuration: dict[str, str]) -> UUID:
    """The stack's component of a kind, following the state folder when it was moved."""
    from zenml.client import Client

    client = Client()
    found = client.list_stack_components(type=kind, name=STACK).items
    if not found:
        return client.create_stack_component(STACK, flavor, kind, configuration).id
    if any(found[0].configuration.get(name) != value for name, value in configuration.items()):
        client.update_stack_component(found[0].id, kind, configuration=configuration)
    return found[0].id


def close_tracking() -> None:
    """End the MLflow run of a step that failed before it began, which ZenML leaves open."""
    import mlflow

    while mlflow.active_run():
        mlflow.end_run("FAILED")
