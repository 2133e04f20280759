"""What a stack says of a cluster without Kubeflow: ZenML's configuration, and where pods may go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field
from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import (
    KubernetesOrchestratorConfig,
)

from infra.kubeflow.config import KubeflowSettings
from infra.kubernetes.pods import kubernetes_settings
from infra.pods import PodStack

if TYPE_CHECKING:
    from zenml.config import ResourceSettings


class KubernetesConfig(KubernetesOrchestratorConfig, PodStack):
    """ZenML's own, with the pools and the image of the steps."""

    # Kubernetes waits 10, 20 and 40 s before it starts a pod again: by the third, a lost pod's hold
    # on its work in S3 has run out.
    retries: int = Field(
        default=4, ge=0, description="times that a step is repeated; a lost pod goes on from S3"
    )
    secret_env: dict[str, dict[str, str]] = Field(
        default={},
        description="Kubernetes secrets by name, each with its keys and the variables they become",
    )
    image_pull_secrets: list[str] = Field(
        default=[], description="secrets by which the image is pulled"
    )
    storage_class: str | None = Field(
        default=None, description="storage class of a step's volume; null: the cluster's default"
    )
    pass_zenml_token_as_secret: bool = Field(
        default=True, description="ZenML's token goes into a secret, not open into the pods"
    )

    def placing(self, resources: ResourceSettings, place: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same place, as Kubernetes' pods are told of it."""
        return kubernetes_settings(resources, KubeflowSettings(**place), self)
