"""What a stack says of a Kubeflow deployment, and a run or a step of its pod.

Nothing here imports kfp: ZenML's server reads it too.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt
from zenml.config.base_settings import BaseSettings
from zenml.orchestrators import BaseOrchestratorConfig
from zenml.utils.secret_utils import SecretField

from infra.pods import PodStack

DAY_SECONDS = 24 * 3600


class KubeflowSettings(BaseSettings):
    """What a run, or one of its steps, may say for itself."""

    synchronous: bool = Field(default=True, description="wait for the run to end")
    timeout: PositiveInt = Field(
        default=7 * DAY_SECONDS, description="most seconds to wait for the run"
    )
    user_namespace: str | None = Field(
        default=None, description="namespace of a user's profile, in multi-user deployments"
    )
    node_selectors: dict[str, str] = Field(
        default={}, description="labels that a node must have for the step's pod"
    )
    tolerations: list[dict[str, Any]] = Field(
        default=[], description="taints that the step's pod tolerates, as Kubernetes writes them"
    )
    gpu_resource: str = Field(
        default="nvidia.com/gpu", description="what Kubernetes calls the step's GPUs"
    )
    shared_memory: str | None = Field(
        default=None,
        description="size of /dev/shm such as 8Gi, for processes that share GPUs",
    )
    disk: str | None = Field(
        default=None, description="size of the step's own volume at /scratch, such as 40Gi"
    )
    storage_class: str | None = Field(
        default=None, description="storage class of that volume; null: the cluster's default"
    )
    step_timeout: PositiveInt | None = Field(
        default=None, description="seconds after which the step's pod is ended"
    )
    secret_env: dict[str, dict[str, str]] = Field(
        default={},
        description="Kubernetes secrets by name, each with its keys and the variables they become",
    )
    image_pull_secrets: list[str] = Field(
        default=[], description="secrets by which the image is pulled"
    )


class KubeflowConfig(BaseOrchestratorConfig, KubeflowSettings, PodStack):
    """What a stack says of its deployment."""

    kubeflow_hostname: str | None = Field(
        default=None, description="address of the KFP API, such as https://host/pipeline"
    )
    kubernetes_context: str | None = Field(
        default=None, description="kubeconfig context of the cluster, where there is no address"
    )
    kubeflow_namespace: str = Field(default="kubeflow", description="namespace of KFP")
    token: str | None = SecretField(default=None, description="bearer token for the KFP API")

    @property
    def is_remote(self) -> bool:
        """Its pods reach ZenML over a server alone."""
        return True

    @property
    def is_local(self) -> bool:
        """Nothing of it runs on this machine."""
        return False

    @property
    def is_synchronous(self) -> bool:
        """Whether a submission waits for the run."""
        return self.synchronous

    @property
    def is_schedulable(self) -> bool:
        """KFP has recurring runs."""
        return True

    @property
    def handles_step_retries(self) -> bool:
        """A pod that was killed cannot repeat itself: KFP does, as often as ZenML says."""
        return True
