"""The flavor: how ZenML finds the orchestrator and what configures it.

ZenML's own flavor compiles no dependency, no memory and no toleration with kfp 2.17; this one is
small, and holds what the pipelines here need.
"""

from __future__ import annotations

from zenml.orchestrators import BaseOrchestratorFlavor

from infra.kubeflow.config import KubeflowConfig
from infra.kubeflow.orchestrator import KubeflowOrchestrator

FLAVOR = "bipline_kubeflow"
SOURCE = "infra.kubeflow.flavor.KubeflowFlavor"


class KubeflowFlavor(BaseOrchestratorFlavor):
    """The flavor as ZenML finds it."""

    @property
    def name(self) -> str:
        """What a stack calls it."""
        return FLAVOR

    @property
    def config_class(self) -> type[KubeflowConfig]:
        """What a component of it is configured by."""
        return KubeflowConfig

    @property
    def implementation_class(self) -> type[KubeflowOrchestrator]:
        """The orchestrator."""
        return KubeflowOrchestrator
