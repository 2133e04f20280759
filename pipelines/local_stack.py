"""The local stack: ZenML and MLflow with all their state below one folder.

Whatever stack, server or tracking store the user has is left alone: this process is pointed
elsewhere before ZenML is imported, and never told about the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from bipline.delivery.registries.mlflow_service import tracking_uri
from pipelines.process_state import Attribute, changed, of_every_run

if TYPE_CHECKING:
    from zenml.enums import StackComponentType

STACK = "bipline-local"
CREDENTIALS = frozenset(
    {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
     "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH"}
)  # fmt: skip
# Settings by which the environment would lead to another stack, server or run.
FOREIGN = (
    "ZENML_STORE_", "ZENML_SECRETS_STORE_", "ZENML_BACKUP_SECRETS_STORE_", "ZENML_ACTIVE_",
    "ZENML_SERVER", "MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_RUN_", "MLFLOW_EXPERIMENT_",
)  # fmt: skip


@contextmanager
def isolated(state: Path, tracking_uri: str | None = None) -> Iterator[None]:
    """Point this process at the ZenML state below ``state`` for the length of the block.

    Runs are told to ``tracking_uri`` where it is given, with the credentials of MLflow's variables.

    Afterwards the environment, and what ZenML and MLflow remember of it, are the caller's again:
    stack and client, tracking store, experiment and run.
    """
    kept = CREDENTIALS if tracking_uri else frozenset[str]()
    with changed(lambda: _lead(state, kept), lambda: _remembered(tracking_uri)):
        yield


def _lead(state: Path, kept: frozenset[str]) -> None:
    """Set the environment for the libraries that are imported from here on, and for children."""
    home = state / "zenml"
    home.mkdir(parents=True, exist_ok=True)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        if name not in kept:
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


def _remembered(tracking_uri: str | None) -> list[Attribute]:
    """Where ZenML keeps in memory what it is pointed at, beside what every run changes.

    A server's address is not written into the stack: ZenML would want its credentials there too.
    """
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration
    from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker
    from zenml.stack import stack

    elsewhere: list[Attribute] = [
        (MLFlowExperimentTracker, "get_tracking_uri", lambda self, **_: tracking_uri)
    ]
    return [
        *of_every_run(),
        *(elsewhere if tracking_uri else ()),
        (GlobalConfiguration, "_global_config", None),
        (Client, "_global_client", None),
        (stack, "_STACK_CACHE", {}),
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
