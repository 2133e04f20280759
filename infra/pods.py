"""What a stack whose steps are pods says of them, whichever orchestrator starts the pods.

Nothing here imports kfp or a Kubernetes client: ZenML's server reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from zenml.config import ResourceSettings

# Where a step's own volume lies, and what is written there beside a read-only root file system.
SCRATCH = "/scratch"
WRITABLE = {"TMPDIR": SCRATCH, "XDG_CACHE_HOME": f"{SCRATCH}/cache"}
SHARED_MEMORY = "/dev/shm"  # noqa: S108


class PodStack(BaseModel):
    """The image of the steps, where their pods may go, and how often one is repeated."""

    image: str = Field(
        default="bipline:latest", description="the image of every step; it carries the code"
    )
    pools: list[dict[str, Any]] = Field(
        default=[], description="node pools of the cluster, see bipline.settings.pools"
    )
    retries: int = Field(
        default=2, ge=0, description="times that a step is repeated; a lost pod goes on from S3"
    )

    def placing(self, resources: ResourceSettings, place: Mapping[str, Any]) -> Mapping[str, Any]:
        """The orchestrator's own settings of a step, whose ``place`` Kubeflow takes as it is."""
        return place
