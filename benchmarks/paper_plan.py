"""A plan on paper: nodes, bytes, seconds and dollars of models that no machine here has run.

    python -m benchmarks.paper_plan infra/plan.md

The needs are those that a dry run tells, from headers of the real shapes (files with a header and
nothing behind it); the formulas are below; :mod:`benchmarks.cluster_simulation` plays the same
releases event by event, and the page tells both.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.cluster_simulation import Nodes, Simulation, Step
from benchmarks.shapes import config_of
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import family_of, shape_of, tensor_shapes
from bipline.model.opening import open_checkpoint
from bipline.settings.compress import CompressSettings
from bipline.settings.pools import NodePool
from bipline.settings.stack_file import load_stack
from bipline.storage.stage_key import PROJECT_ROOT
from pipelines.placement import RETRY_DELAY, places

STACK = PROJECT_ROOT / "infra" / "stacks" / "aws-kubeflow.yaml"
# Measured: benchmarks/RESULTS.md, LLaMA-7B, all stages beside their floor on two cores.
OVER_FLOOR = 1.30
# Measured: a pod from its start to its step, with all libraries to import (8 to 12 s).
POD_START = 10.0
# Compensating 405B takes more than 80 GB on the card: a pool that the stack file does not have.
H200 = NodePool(
    name="gpu-h200", cpus=24, memory=256 << 30, disk=4000 << 30, gpus=1, gpu_memory=141 * 10**9,
    price=7.90, operations=4.9e14,
)  # fmt: skip
# Of a spot node, an hour: an assumption.
SPOT_LOST = 0.05
# How busy nodes are kept that are there all day.
BUSY = 0.8
DAY = 86400.0
RELEASES = 1000
# What is played: days of releases, or one release so many times.
DAYS = 3
REPEATS = 40


@dataclass(frozen=True)
class Case:
    """A model, how its work is divided, and how many are released a day; None for one alone."""

    name: str
    shape: str
    parts: int
    releases: int | None = None
    compensation: str = "least-squares"


CASES = (
    Case("70B", "llama-3-70b", 8),
    Case("405B", "llama-3.1-405b", 16),
    Case("1,000 releases of 8B a day", "llama-3-8b", 1, RELEASES),
)


@dataclass(frozen=True)
class Figures:
    """What a plan, or a simulation, comes to: of one release, and of a day where there are many."""

    seconds: float
    node_hours: float
    dollars: float
    bytes: float


def settings_of(case: Case, model: Path) -> CompressSettings:
    """The main job on a GPU: 128 windows of 2,048 tokens, two texts' worth of evaluation."""
    options = {"row_steps": 0, "input_maps": False, "generated_windows": 0}
    compensation: dict[str, Any] = {"compensation": case.compensation}
    if case.compensation != "none":
        compensation["compensation_option"] = options
    return CompressSettings.model_validate(
        {
            "model": str(model), "texts": {"calibration": "hf:", "held-out": "hf:"},
            "tasks": {"piqa": "hf:"}, "calibrate": {"samples": 128, "seqlen": 2048},
            "score": {"criterion": "llm-bip-glu", "parts": min(case.parts, 8)},
            "allocate": {"ratio": 0.3, "allocation": "uniform"}, "compensate": compensation,
            "compute": {"device": "cuda", "dtype": "bfloat16"},
            "evaluate": {
                "tasks": ("piqa",), "parts": case.parts,
                "protocol": {"seqlen": 2048, "dtype": "bfloat16"},
            },
        }
    )  # fmt: skip


@contextmanager
def outline(shape: str) -> Iterator[Checkpoint]:
    """A checkpoint of a shape whose file has a header, and no byte of weights behind it."""
    config = config_of(shape)
    sizes, tensors, offset = shape_of(config), dict[str, Any](), 0
    for name, of in tensor_shapes(family_of("llama"), config, sizes).items():
        size = 2 * math.prod(of)
        tensors[name] = {"dtype": "BF16", "shape": of, "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(tensors).encode()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "config.json").write_text(json.dumps(config))
        with (place / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + offset)
        yield open_checkpoint(place)


def steps_of(case: Case, pools: tuple[NodePool, ...]) -> list[Step]:
    """Every step with its pool and its work there."""
    with outline(case.shape) as checkpoint:
        settings = settings_of(case, Path(checkpoint.location))
        placed = places(settings, checkpoint, pools)
        blocks = checkpoint.shape.num_hidden_layers
    found = []
    for name, place in placed.items():
        need, pool = place.need, place.pool
        found.append(Step(
            name=name, after=_after(name, tuple(placed)), pool=pool.name,
            read=need.read / pool.transfer, write=need.written / pool.transfer,
            compute=1.0 + OVER_FLOOR * need.operations / pool.operations,
            blocks=blocks if need.read or need.operations else 1, moved=need.read + need.written,
        ))  # fmt: skip
    return found


def _after(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The steps that a step of the compress pipeline follows."""
    parts = tuple(each for each in names if each.startswith(f"{name}_part_"))
    if parts:
        return parts
    if name.startswith("evaluate"):
        return ("prune",)
    if name == "export":
        return tuple(each for each in names if each.startswith("evaluate") and "_part_" not in each)
    if "_part_" in name:
        return ("calibrate",)
    whole = [each for each in names if "_part_" not in each]
    return tuple(whole[: whole.index(name)][-1:])


def floor_seconds(step: Step) -> float:
    """What is slowest of reading, computing and writing, and one block of the others."""
    each = step.read, step.compute, step.write
    return max(each) + (sum(each) - max(each)) / step.blocks


def losses(step: Step, lost: float) -> float:
    """How often a step's pod is lost: by its time on a node that is taken away so often an hour."""
    return lost / 3600 * (POD_START + floor_seconds(step))


def held_seconds(step: Step, lost: float) -> float:
    """Of a node: the pod's start, the step, and of every loss a start and half a block more."""
    again = POD_START + floor_seconds(step) / step.blocks / 2
    return POD_START + floor_seconds(step) + losses(step, lost) * again


def nodes_for(case: Case, steps: Sequence[Step], pools: Sequence[NodePool]) -> dict[str, Nodes]:
    """One release: a node for every step that may run at once. A day: by how busy nodes are."""
    found = {}
    for pool in pools:
        own = [step for step in steps if step.pool == pool.name]
        lost = SPOT_LOST if "spot" in pool.name else 0.0
        if case.releases is None:
            together = (sum(one.after == two.after for two in own) for one in own)
            number = max(together, default=0)
        else:
            busy = case.releases / DAY * sum(held_seconds(step, lost) for step in own)
            number = max(2, math.ceil(busy / BUSY)) if own else 0
        if number:
            found[pool.name] = Nodes(number, pool.price, lost)
    return found


def planned(case: Case, steps: Sequence[Step], nodes: Mapping[str, Nodes]) -> Figures:
    """By the formulas: the longest way through the steps, and what all of them hold and move."""
    waits = {name: _wait(case, steps, name, pool) for name, pool in nodes.items()}
    ended: dict[str, float] = {}
    for step in steps:
        lost = nodes[step.pool].lost
        begun = max((ended[name] for name in step.after), default=0.0) + waits[step.pool]
        ended[step.name] = begun + held_seconds(step, lost) + losses(step, lost) * RETRY_DELAY
    hours = {step.name: held_seconds(step, nodes[step.pool].lost) / 3600 for step in steps}
    dollars = sum(hours[step.name] * nodes[step.pool].price for step in steps)
    moved = sum(
        step.moved * (1 + losses(step, nodes[step.pool].lost) / step.blocks / 2) for step in steps
    )
    return Figures(max(ended.values()), sum(hours.values()), dollars, moved)


def _wait(case: Case, steps: Sequence[Step], name: str, pool: Nodes) -> float:
    """Seconds in a pool's queue (Allen and Cunneen's formula over Erlang's)."""
    if case.releases is None:
        return 0.0
    held = [held_seconds(step, pool.lost) for step in steps if step.pool == name]
    rate, mean = case.releases * len(held) / DAY, sum(held) / len(held)
    variance = sum((each - mean) ** 2 for each in held) / len(held) / mean**2
    load = rate * mean
    blocked = 1.0
    for number in range(1, pool.number + 1):
        blocked = load * blocked / (number + load * blocked)
    queued = blocked / (1 - load / pool.number * (1 - blocked))
    return (1 + variance) / 2 * queued * mean / (pool.number - load)


def simulated(case: Case, steps: Sequence[Step], nodes: Mapping[str, Nodes]) -> Figures:
    """Played: one release after the other, or days of them that arrive by chance."""
    draw = random.Random(1)
    if case.releases is None:
        arrivals = [number * 30 * DAY for number in range(REPEATS)]
    else:
        arrivals = sorted(draw.uniform(0, DAYS * DAY) for _ in range(DAYS * case.releases))
    played = Simulation(steps, nodes, POD_START, RETRY_DELAY).run(arrivals)
    count = len(arrivals)
    dollars = sum(played.held[name] / 3600 * pool.price for name, pool in nodes.items())
    return Figures(
        sum(played.latencies) / count, sum(played.held.values()) / 3600 / count, dollars / count,
        played.moved / count,
    )  # fmt: skip


@dataclass(frozen=True)
class Told:
    """A case, its nodes, and both ways to its figures."""

    case: Case
    nodes: dict[str, Nodes]
    steps: list[Step]
    planned: Figures
    simulated: Figures


@cache
def told(case: Case) -> Told:
    """Plan a case and play it."""
    pools = (*load_stack(STACK, filled=False).pools, H200)
    steps = steps_of(case, pools)
    nodes = nodes_for(case, steps, pools)
    return Told(case, nodes, steps, planned(case, steps, nodes), simulated(case, steps, nodes))


def page() -> str:
    """The plan as a page."""
    found = [told(case) for case in CASES]
    lines = [HEAD]
    for each in found:
        lines += _rows(each)
    return "\n".join([*lines, "", *(line for each in found for line in _detail(each)), TAIL])


HEAD = """# A plan on paper

Models that no machine here has run, and a thousand releases a day. Made by
`python -m benchmarks.paper_plan infra/plan.md`; a test holds this page to the command, and the
formulas to within 10 % of a simulation. **Nothing of it was run.**

The job: `llm-bip-glu`, ratio 0.3, least squares, 128 windows of 2,048 tokens, one text and one
task, no recovery. Pools and prices are those of `stacks/aws-kubeflow.yaml`: a node moves 200 MB a
second from and to S3, and a GPU reaches half of what its maker says. Measured: a stage takes 1.30
times its floor (LLaMA-7B), a pod 10 s to its step. Assumed: a spot node is lost once in 20 hours,
and the step goes on from the last block after 75 s. Compensating 405B needs more than 80 GB on the
card: a pool of H200 (141 GB, 7.90 dollars an hour, a share of p5en.48xlarge) stands beside those
of the file.

| | | seconds | node hours | dollars | TB moved |
|---|---|---:|---:|---:|---:|"""
TAIL = """The formulas. A step: the slowest of reading, computing and writing, and one block of
the other two. A release: the longest way through its steps. Nodes of one release: as many as have
work at once; of a day: the work over how busy nodes are kept (0.8). Queues: Allen and Cunneen's
formula. A lost pod: another start, half a block and the wait. Left out: the start of nodes, idle
nodes, requests to S3, traffic between regions.
"""


def _rows(each: Told) -> list[str]:
    def row(kind: str, figures: Figures) -> str:
        return (
            f"| {each.case.name} | {kind} | {figures.seconds:,.0f} | {figures.node_hours:,.2f} | "
            f"{figures.dollars:,.2f} | {figures.bytes / 1e12:,.2f} |"
        )

    return [row("planned", each.planned), row("simulated", each.simulated)]


def _detail(each: Told) -> list[str]:
    nodes = ", ".join(f"{pool.number} {name}" for name, pool in each.nodes.items())
    slow = sorted(each.steps, key=floor_seconds)[-3:][::-1]
    longest = ", ".join(f"{step.name} {floor_seconds(step):,.0f} s on {step.pool}" for step in slow)
    lines = [f"**{each.case.name}.** Nodes: {nodes}. Longest steps: {longest}."]
    if each.case.releases:
        day = each.case.releases * each.planned.dollars
        kept = sum(24 * pool.number * pool.price for pool in each.nodes.values())
        moved = each.case.releases * each.planned.bytes / 1e12
        lines[0] += (
            f" A day: {moved:,.0f} TB, {day:,.0f} dollars of busy nodes, {kept:,.0f} of all "
            "that are kept for them."
        )
    return [*lines, ""]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.paper_plan OUT.md")
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
