"""What is wrong with a stack, and how to mend it: one real call to each of its components."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError
from bipline.delivery.registries.mlflow_service import PROBE_LIMITS, limited, probe
from bipline.settings.stack import StackSettings
from bipline.settings.stack_file import node_pools
from pipelines.process_state import Attribute, of_every_run

ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.manifest.v1", "oci.image.index.v1", "docker.distribution.manifest.v2",
        "docker.distribution.manifest.list.v2",
    )
)  # fmt: skip
WAIT_SECONDS = 10
HERE = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Finding:
    """What a component answered, and what to do where it did not."""

    name: str
    ok: bool
    said: str
    mend: str = ""


class Ill(Exception):
    """A component does not work: what it said, and what mends it."""

    def __init__(self, said: object, mend: str) -> None:
        super().__init__(" ".join(without_secrets(str(said)).split())[:300])
        self.mend = mend


def examine(settings: StackSettings) -> list[Finding]:
    """Every component of the stack that the settings mean, ZenML first.

    Raises InvalidInput for a stack that is not registered.
    """
    from pipelines.own_stack import ADD_TRACKER, chosen, quiet
    from pipelines.process_state import changed

    with changed(quiet, _asked_anew):
        server = _found("zenml", _zenml)
        if not server.ok:
            return [server]
        stack = chosen(settings.stack)
        found = [server, *_components(None)]
        if stack.experiment_tracker is None:
            mend = ADD_TRACKER.format(name=stack.name)
            found.append(Finding("experiment_tracker", False, "the stack has none", mend))
        return found


def _asked_anew() -> list[Attribute]:
    """As every run, and without what ZenML remembers of components that changed since."""
    from zenml.stack import stack

    return [*of_every_run(), (stack, "_STACK_CACHE", {})]


def first_failure(kinds: Collection[str]) -> Finding | None:
    """The first component of the active stack that does not answer, among these kinds."""
    return next((each for each in _components(kinds) if not each.ok), None)


def _components(kinds: Collection[str] | None) -> Iterator[Finding]:
    from zenml.client import Client

    stack = Client().active_stack
    for component in stack.all_components:
        kind = component.type.value
        if kinds is None or kind in kinds:
            ask = ASKED.get(kind)
            if ask is None:
                yield Finding(kind, True, f"{component.flavor}: nothing to ask")
            else:
                yield _found(kind, partial(ask, component))


def _found(name: str, ask: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, ask())
    except Ill as ill:
        return Finding(name, False, str(ill), ill.mend)
    except BiplineError as error:
        return Finding(name, False, str(error), MENDS[name])
    except Exception as error:
        said = " ".join(without_secrets(str(error)).split())[:300] or type(error).__name__
        return Finding(name, False, said, MENDS[name])


def _zenml() -> str:
    from zenml.client import Client

    client = Client()
    version = client.zen_store.get_store_info().version
    return (
        f"{without_secrets(client.zen_store.url)}, ZenML {version}, user {client.active_user.name}"
    )


def _orchestrator(component: Any) -> str:
    from infra.kubeflow.config import KubeflowConfig
    from infra.pods import PodStack

    config = component.config
    if not isinstance(config, PodStack):
        return f"{component.flavor}: nothing to ask"
    pools = node_pools(config.pools)
    if isinstance(config, KubeflowConfig):
        component.probe()
        where = f"KFP at {config.kubeflow_hostname or f'context {config.kubernetes_context}'}"
    else:
        where = _cluster(component)
    if not pools:
        raise Ill("no pools", "list the cluster's node pools in the stack file, and apply it")
    if not any(pool.gpus for pool in pools):
        return f"{without_secrets(where)}; no pool with a GPU, so steps run on CPUs"
    return f"{without_secrets(where)}; pools {', '.join(pool.name for pool in pools)}"


def _cluster(component: Any) -> str:
    """Ask a cluster's API for its version, as ZenML's Kubernetes orchestrator would be let in."""
    from bipline.base.extras import require

    context = component.config.kubernetes_context
    try:
        api = require("kubernetes.client", "kubeflow").VersionApi
        version = api(component.get_kube_client()).get_code(_request_timeout=WAIT_SECONDS)
    except Exception as error:
        raise Ill(
            f"context {context}: {getattr(error, 'reason', None) or error}", CLUSTER
        ) from None
    return f"Kubernetes {version.git_version} of context {context}"


def _artifact_store(component: Any) -> str:
    """Write, read and remove a small object, as every step does."""
    path = f"{component.path}/.bipline-doctor-{os.getpid()}"
    with _storage_failures(component.path):
        with component.open(path, "w") as file:
            file.write("here")
        with component.open(path, "r") as file:
            content = file.read()
        component.remove(path)
    if content != "here":
        raise Ill("an object came back otherwise than it was written", MENDS["artifact_store"])
    return f"{without_secrets(component.path)}: written, read and removed"


@contextmanager
def _storage_failures(path: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise Ill(
            error, f"the credentials may not write to {path}: correct key and secret"
        ) from None
    except FileNotFoundError as error:
        bucket = path.removeprefix("s3://").partition("/")[0]
        raise Ill(error, f"create the bucket {bucket}, or correct the path") from None
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if "Credentials" in text:
            raise Ill(text, "give key and secret, a role, or AWS_ variables") from None
        raise Ill(text, MENDS["artifact_store"]) from None


def _experiment_tracker(component: Any) -> str:
    if component.flavor != "mlflow":
        return f"{component.flavor}: nothing to ask"
    address = str(component.get_tracking_uri())
    component.configure_mlflow()
    with limited(PROBE_LIMITS):
        probe(address)
    return f"MLflow at {without_secrets(address)}"


def _container_registry(component: Any) -> str:
    """Ask whether the image of the pods is there."""
    from zenml.client import Client

    image = getattr(Client().active_stack.orchestrator.config, "image", None)
    if image is None:
        return f"{component.config.uri}: no image is named"
    if component.flavor == "aws":
        return _in_ecr(image)
    registry, _, rest = image.partition("/")
    name, _, tag = rest.rpartition(":")
    scheme = "http" if registry.partition(":")[0] in HERE else "https"
    request = urllib.request.Request(  # noqa: S310
        f"{scheme}://{registry}/v2/{name}/manifests/{tag}", method="HEAD",
        headers={"Accept": ACCEPT},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS):  # noqa: S310
            return f"{image} is there"
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise Ill(f"{image} is not there", PUSH) from None
        if error.code in (401, 403):
            return f"{registry} answers and asks for a login: whether {image} is there is not known"
        raise


CLUSTER = "start the cluster, or correct kubernetes_context; `kubectl version` must answer"
PUSH = "build and push it, or correct `image` in the stack file"


def _in_ecr(image: str) -> str:
    """Ask ECR itself, by the account that runs this."""
    from bipline.base.extras import require

    registry, _, rest = image.partition("/")
    name, _, tag = rest.rpartition(":")
    region = registry.split(".")[3] if registry.count(".") > 3 else None
    client = require("boto3", "s3").client("ecr", region_name=region)
    try:
        client.describe_images(repositoryName=name, imageIds=[{"imageTag": tag}])
    except (
        client.exceptions.ImageNotFoundException, client.exceptions.RepositoryNotFoundException,
    ):  # fmt: skip
        raise Ill(f"{image} is not there", PUSH) from None
    return f"{image} is there"


ASKED: dict[str, Callable[[Any], str]] = {
    "orchestrator": _orchestrator,
    "artifact_store": _artifact_store,
    "experiment_tracker": _experiment_tracker,
    "container_registry": _container_registry,
}
MENDS = {
    "zenml": "start the server, or log in by `zenml login ADDRESS`; `zenml status` tells which",
    "orchestrator": "start Kubeflow Pipelines, open its port, or correct kubeflow_hostname",
    "artifact_store": "start the endpoint, or correct client_kwargs.endpoint_url",
    "experiment_tracker": "start the MLflow server, or correct tracking_uri, user and password",
    "container_registry": "start the registry, or correct its uri",
}
