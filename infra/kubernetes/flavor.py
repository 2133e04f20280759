"""The flavor: ZenML's Kubernetes orchestrator, and what says where a step's pod goes."""

from __future__ import annotations

from zenml.integrations.kubernetes.flavors import KubernetesOrchestratorFlavor

from infra.kubernetes.config import KubernetesConfig

FLAVOR = "bipline_kubernetes"
SOURCE = "infra.kubernetes.flavor.KubernetesFlavor"


class KubernetesFlavor(KubernetesOrchestratorFlavor):
    """The flavor as ZenML finds it; ZenML's own orchestrator carries it out."""

    @property
    def name(self) -> str:
        """What a stack calls it."""
        return FLAVOR

    @property
    def config_class(self) -> type[KubernetesConfig]:
        """What a component of it is configured by."""
        return KubernetesConfig
