"""Where the steps of a run go: what each needs, the cheapest pool that has it, ZenML's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bipline.base.errors import InvalidInput
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.floor import Rates, usual_rates
from bipline.settings.compress import CompressSettings
from bipline.settings.pools import NodePool, cheapest
from bipline.stages.forecast import duration
from bipline.stages.resolve import known_checkpoint
from bipline.stages.step_needs import step_needs
from bipline.values.need import StepNeed

if TYPE_CHECKING:
    from infra.pods import PodStack

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
# A pod's limit above what is estimated: the estimates are within a factor of 1.5 of what is used.
ROOM = 1.5
# A step that takes so many times as long as it should is ended; the least is what starting takes.
PATIENCE, LEAST_TIMEOUT = 10, 3600
# Longer than a lost pod holds its work in S3 (storage.s3_lease), so that the next one may take it.
RETRY_DELAY = 75


@dataclass(frozen=True)
class Place:
    """A step's need, and the pool that it goes to."""

    need: StepNeed
    pool: NodePool

    @property
    def cost(self) -> float:
        """Dollars, as long as the step itself takes."""
        return self.need.seconds / 3600 * self.pool.price


def places(
    settings: CompressSettings, checkpoint: Checkpoint, pools: tuple[NodePool, ...]
) -> dict[str, Place]:
    """Every step with the cheapest pool that has room for it, by the step's name.

    Raises InvalidInput where no pool has, and where a GPU is asked for that no pool has.
    """
    device = settings.compute.device
    gpu = device.startswith("cuda") or (device == "auto" and any(pool.gpus for pool in pools))
    timed = {pool.name: step_needs(settings, checkpoint, rates_of(pool), gpu) for pool in pools}
    found: dict[str, Place] = {}
    for name, need in step_needs(settings, checkpoint, rates_of(None), gpu).items():
        pool = cheapest(pools, name, need)
        found[name] = Place(timed[pool.name][name], pool)
    return found


def told_places(settings: CompressSettings, pools: tuple[NodePool, ...]) -> list[tuple[str, str]]:
    """What each step needs and, where there are pools, where it goes: by the step's name.

    Empty where the model's header is not known yet. Raises InvalidInput as :func:`places` does.
    """
    checkpoint = known_checkpoint(settings.model)
    if checkpoint is None:
        return []
    if not pools:
        dtype = torch_dtype(settings.compute.named_dtype)
        rates = usual_rates(checkpoint.shape, dtype)
        needs = step_needs(settings, checkpoint, rates)
        return [(name, f"{need}, about {duration(need.seconds)}") for name, need in needs.items()]
    placed = places(settings, checkpoint, pools)
    told = [
        (name, f"{each.need}, about {duration(each.need.seconds)}, on {each.pool.name}")
        for name, each in placed.items()
    ]
    seconds = sum(each.need.seconds for each in placed.values())
    cost = sum(each.cost for each in placed.values())
    return [*told, ("all steps", f"{duration(seconds)} of nodes, {cost:.2f} dollars, their start "
                                 "and idle time left out")]  # fmt: skip


def rates_of(pool: NodePool | None) -> Rates:
    """What a node of a pool reaches."""
    if pool is None:
        return Rates(read=1e8, write=1e8, compute=1e11)
    return Rates(read=pool.transfer, write=pool.transfer, compute=pool.operations)


def checkpoint_of(settings: CompressSettings) -> Checkpoint:
    """The model's header. Raises InvalidInput where it is not known before the run resolves it."""
    found = known_checkpoint(settings.model)
    if found is None:
        raise InvalidInput(
            f"{settings.model}: its header is not known before the run fetches it, so what the "
            "steps need is not known either; give the model's directory, s3:// or hf: address"
        )
    return found


def run_options(settings: CompressSettings | None, config: PodStack) -> dict[str, Any]:
    """What ZenML is told of a run in pods: the image, retries, and each step's place.

    Without settings no step is placed: Kubernetes decides. The image carries the code: nothing is
    built, and nothing of this folder is sent anywhere.
    """
    from zenml.config import DockerSettings
    from zenml.config.retry_config import StepRetryConfig

    from bipline.settings.stack_file import node_pools

    docker = DockerSettings(
        parent_image=config.image, skip_build=True, allow_including_files_in_images=False,
        allow_download_from_code_repository=False, allow_download_from_artifact_store=False,
    )  # fmt: skip
    pools = node_pools(config.pools)
    placed = places(settings, checkpoint_of(settings), pools) if settings and pools else {}
    options: dict[str, Any] = {
        "settings": {"docker": docker},
        "steps": {name: {"settings": step_settings(each, config)} for name, each in placed.items()},
    }
    if config.retries:
        options["retry"] = StepRetryConfig(max_retries=config.retries, delay=RETRY_DELAY, backoff=2)
    return options


def step_settings(place: Place, config: PodStack) -> Mapping[str, Any]:
    """ZenML's settings of a step: resources, and where its pod may run."""
    from zenml.config import ResourceSettings

    need, pool = place.need, place.pool
    memory = math.ceil(need.memory * ROOM / MEBIBYTE)
    seconds = max(LEAST_TIMEOUT, math.ceil(need.seconds * PATIENCE))
    resources = ResourceSettings(
        cpu_count=cpus(pool), memory=f"{memory}MiB", gpu_count=1 if need.gpu else None
    )
    told = {
        "node_selectors": pool.node_selectors,
        "tolerations": list(pool.tolerations),
        "disk": f"{max(1, math.ceil(need.disk * ROOM / GIBIBYTE))}Gi",
        "shared_memory": "8Gi" if need.gpu and pool.gpus > 1 else None,
        "step_timeout": seconds,
    }
    return {"resources": resources, "orchestrator": config.placing(resources, told)}


def cpus(pool: NodePool) -> float:
    """Cores of a step's pod: those that a GPU comes with, or a node's, without the system's."""
    return max(0.5, math.floor(pool.cpus * 0.9 / max(1, pool.gpus) * 2) / 2)
