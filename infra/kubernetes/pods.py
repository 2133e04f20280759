"""A step's place, as ZenML's Kubernetes orchestrator is told of it.

It reads no resource settings of ZenML's: what a pod may use stands in its own settings alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from infra.pods import SCRATCH, SHARED_MEMORY, WRITABLE

if TYPE_CHECKING:
    from zenml.config import ResourceSettings

    from infra.kubeflow.config import KubeflowSettings
    from infra.kubernetes.config import KubernetesConfig

Volume = tuple[dict[str, Any], dict[str, Any]]


def kubernetes_settings(
    resources: ResourceSettings, place: KubeflowSettings, config: KubernetesConfig
) -> dict[str, Any]:
    """The orchestrator's settings of a step, from what Kubeflow would be told of it.

    Kubernetes' deadline is of all attempts together.
    """
    volumes = list(_volumes(place, config.storage_class))
    deadline = place.step_timeout and place.step_timeout * (config.retries + 1)
    return {
        "active_deadline_seconds": deadline,
        "pod_settings": {
            "resources": _resources(resources, place.gpu_resource),
            "node_selectors": place.node_selectors,
            "tolerations": place.tolerations,
            "volumes": [volume for volume, _ in volumes],
            "volume_mounts": [mount for _, mount in volumes],
            "env": [*_secrets(config.secret_env), *_plain(WRITABLE if place.disk else {})],
            "image_pull_secrets": config.image_pull_secrets,
        },
    }


def _resources(wanted: ResourceSettings, gpu: str) -> dict[str, dict[str, str]]:
    """What is asked for is the limit too; a GPU is asked for by its limit alone."""
    # ZenML writes 24GiB where Kubernetes writes 24Gi.
    told = {"cpu": f"{wanted.cpu_count:g}", "memory": str(wanted.memory).removesuffix("B")}
    gpus = {gpu: str(wanted.gpu_count)} if wanted.gpu_count else {}
    return {"requests": told, "limits": {**told, **gpus}}


def _volumes(place: KubeflowSettings, storage_class: str | None) -> Iterator[Volume]:
    if place.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": place.shared_memory}
        yield _mounted("shared-memory", {"emptyDir": memory}, SHARED_MEMORY)
    if place.disk:
        claim: dict[str, Any] = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": place.disk}},
        }
        if storage_class:
            claim["storageClassName"] = storage_class
        own = {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
        yield _mounted("scratch", own, SCRATCH)


def _mounted(name: str, volume: dict[str, Any], path: str) -> Volume:
    return {"name": name, **volume}, {"name": name, "mountPath": path}


def _secrets(secret_env: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    for secret, keys in secret_env.items():
        for key, variable in keys.items():
            place = {"secretKeyRef": {"name": secret, "key": key}}
            yield {"name": variable, "valueFrom": place}


def _plain(values: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, value in values.items():
        yield {"name": name, "value": value}
