"""The user's own stack: a named one, or the active one, with its tracker and artifact store.

Nothing of the user's is changed; a named stack is the active one of this process alone. A server
that does not answer is known before any work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.progress import note
from bipline.settings.pools import NodePool
from bipline.settings.stack_file import node_pools
from pipelines.process_state import changed, of_every_run

ADD_TRACKER = (
    "add one: zenml experiment-tracker register mlflow --flavor=mlflow --tracking_uri=ADDRESS, "
    "then zenml stack update {name} -e mlflow; or give --local for a stack in a folder"
)


@contextmanager
def own_stack(name: str | None, tracking_uri: str | None) -> Iterator[str]:
    """Run on a stack of the user's for the length of the block; gives its tracker's address.

    Raises InvalidInput for a stack that is not there, has no MLflow tracker, or tells another
    server than ``tracking_uri``; EnvironmentFailure where ZenML does not answer.
    """
    with changed(quiet, of_every_run):
        with answering():
            stack = chosen(name)
            tracker = stack.experiment_tracker
            tracks = tracker is not None and tracker.flavor == "mlflow"
            address = str(tracker.get_tracking_uri()) if tracker and tracks else ""
        if not tracks:
            has = f"tracks by {tracker.flavor}" if tracker else "has no experiment tracker"
            raise InvalidInput(f"stack {stack.name!r} {has}; {ADD_TRACKER.format(name=stack.name)}")
        if tracking_uri not in (None, address):
            raise InvalidInput(
                f"promote.tracking_uri is {without_secrets(str(tracking_uri))}, and stack "
                f"{stack.name!r} tells {without_secrets(address)}; leave the first out"
            )
        with answering():
            tracker.configure_mlflow()
            _tell(stack, address)
        yield address


def pools_of(name: str) -> tuple[NodePool, ...]:
    """The node pools of a registered stack; empty for one whose orchestrator has none.

    Raises as :func:`own_stack` does.
    """
    with changed(quiet, of_every_run), answering():
        return node_pools(getattr(chosen(name).orchestrator.config, "pools", ()))


def quiet() -> None:
    """What the user has set stays; nothing asks a question in a run that nobody watches."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("ZENML_DISABLE_INTERACTIVE_INPUT", "true")


def chosen(name: str | None) -> Any:
    """The stack of a name, the active one of this process from here on; or the active one."""
    from zenml.client import Client

    client = Client()
    if name is not None:
        found = client.list_stacks(name=f"equals:{name}").items
        if not found:
            known = ", ".join(each.name for each in client.list_stacks(size=50).items)
            raise InvalidInput(f"stack {name!r}: not registered; known: {known}")
        os.environ["ZENML_ACTIVE_STACK_ID"] = str(found[0].id)
    return client.active_stack


def _tell(stack: Any, address: str) -> None:
    """Which servers a run goes to, in one line."""
    from zenml.client import Client

    places = {
        "ZenML": Client().zen_store.url, "MLflow": address, "artifacts": stack.artifact_store.path,
    }  # fmt: skip
    told = "; ".join(f"{name} {without_secrets(str(place))}" for name, place in places.items())
    note(f"stack {stack.name}: {told}")


@contextmanager
def answering() -> Iterator[None]:
    """Raise EnvironmentFailure where ZenML's store or server is what failed."""
    try:
        yield
    except BiplineError:
        raise
    except Exception as error:
        reason = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
        raise EnvironmentFailure(
            f"ZenML does not answer: {reason}; `zenml status` tells its server, --local needs none"
        ) from error
