"""Node pools of a cluster: what a node has, what it costs, and how a pod is sent to it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bipline.base.errors import InvalidInput
from bipline.settings.base import ByteCount, Settings
from bipline.values.need import StepNeed

# The kubelet, the system and what every node runs take the rest.
SHARE_FOR_PODS = 0.9


class NodePool(Settings):
    """Nodes of one kind."""

    name: str = Field(min_length=1, description="what the pool is called")
    cpus: float = Field(gt=0, description="cores of a node")
    memory: ByteCount = Field(description="memory of a node, such as 64GiB")
    disk: ByteCount = Field(default=100 << 30, description="largest volume of a step's own")
    gpus: int = Field(default=0, ge=0, description="GPUs of a node")
    gpu_memory: ByteCount | None = Field(default=None, description="memory of one GPU")
    operations: float = Field(
        default=1e11, gt=0,
        description="floating-point operations a second that a node reaches, measured or half of "
        "what its maker says",
    )  # fmt: skip
    transfer: ByteCount = Field(
        default=200 * 10**6, description="bytes a second between a node and the artifact store"
    )
    price: float = Field(ge=0, description="of a node, in dollars an hour")
    node_selectors: dict[str, str] = Field(default={}, description="labels of its nodes")
    tolerations: tuple[dict[str, Any], ...] = Field(
        default=(), description="what tolerates the taints of its nodes, as Kubernetes writes it"
    )

    def fits(self, need: StepNeed) -> bool:
        """Whether a step's pod finds room on an empty node.

        A node with GPUs is left to steps that use one.
        """
        if bool(self.gpus) != need.gpu:
            return False
        on_gpu = not need.gpu or need.gpu_memory <= (self.gpu_memory or 0) * SHARE_FOR_PODS
        return on_gpu and need.memory <= self.memory * SHARE_FOR_PODS and need.disk <= self.disk

    def __str__(self) -> str:
        on_gpu = f", {self.gpus} GPU of {(self.gpu_memory or 0) / 1e9:.0f} GB" if self.gpus else ""
        return f"{self.name} ({self.memory / 1e9:.0f} GB{on_gpu}, disk {self.disk / 1e9:.0f} GB)"


def cheapest(pools: tuple[NodePool, ...], step: str, need: StepNeed) -> NodePool:
    """The cheapest pool whose nodes have room for a step.

    Raises InvalidInput where none has, with what is there.
    """
    fitting = [pool for pool in pools if pool.fits(need)]
    if fitting:
        return min(fitting, key=lambda pool: (pool.price, pool.memory))
    if need.gpu and not any(pool.gpus for pool in pools):
        raise InvalidInput(
            f"step {step} needs a GPU and the stack has no pool with one; set compute.device to "
            "cpu, or add a pool with gpus to the orchestrator's pools"
        )
    known = "; ".join(map(str, pools)) or "none"
    raise InvalidInput(f"step {step} needs {need}; no pool of the stack has that: {known}")
