"""A day of a cluster, event by event: releases arrive, their steps queue for nodes, pods are lost.

A step goes through its blocks as bipline does: the next block is read while one is computed, two
places take turns, and what is done is written beside both. :mod:`benchmarks.paper_plan` is held to
what comes out of this.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

PLACES = 2


@dataclass(frozen=True)
class Step:
    """A step: what it follows, the pool that it goes to, and its work at that pool's rates.

    ``read``, ``compute`` and ``write`` are seconds, each of so many equal ``blocks``; ``moved`` are
    bytes from and to S3.
    """

    name: str
    after: tuple[str, ...]
    pool: str
    read: float
    compute: float
    write: float
    blocks: int
    moved: int

    @property
    def seconds(self) -> float:
        """From the first byte read to the last one written, block by block."""
        reads, computes, writes = [0.0] * PLACES, [0.0] * PLACES, 0.0
        for _ in range(self.blocks):
            # A place is free when the block before last was computed.
            begun = max(reads[-1], computes[-PLACES])
            reads.append(begun + self.read)
            computes.append(max(computes[-1], reads[-1]) + self.compute)
            writes = max(writes, computes[-1]) + self.write
        # Divided once, at the end: a block's share of the shortest times there are would be none.
        return max(computes[-1], writes) / self.blocks


@dataclass(frozen=True)
class Nodes:
    """The nodes of a pool: how many, dollars an hour, and how often one is taken away an hour."""

    number: int
    price: float
    lost: float = 0.0


@dataclass
class Outcome:
    """What came of all releases: seconds of each and of nodes, bytes, and pods lost."""

    latencies: list[float] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    moved: int = 0
    lost: int = 0


@dataclass
class Simulation:
    """Releases of equal steps on pools; ``start`` is a pod's start, ``wait`` follows a lost one."""

    steps: Sequence[Step]
    nodes: Mapping[str, Nodes]
    start: float
    wait: float
    seed: int = 0

    def run(self, arrivals: Sequence[float]) -> Outcome:
        """All releases to their end."""
        self._random, self._numbers = random.Random(self.seed), count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._free = {name: pool.number for name, pool in self.nodes.items()}
        self._queues: dict[str, deque[Callable[[], None]]] = {n: deque() for n in self.nodes}
        self.outcome = Outcome(held=dict.fromkeys(self.nodes, 0.0))
        for arrival in arrivals:
            self._at(arrival, _Release(self, arrival).begin)
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.outcome

    def ask(self, step: Step, left: float, ended: Callable[[], None]) -> None:
        """Queue a step with a share of its work left for a node of its pool."""
        self._queues[step.pool].append(lambda: self._hold(step, left, ended))
        self._serve(step.pool)

    def _serve(self, pool: str) -> None:
        while self._free[pool] and self._queues[pool]:
            self._free[pool] -= 1
            self._queues[pool].popleft()()

    def _hold(self, step: Step, left: float, ended: Callable[[], None]) -> None:
        """A pod on a node: to the step's end, or until the node is taken away in its middle."""
        rate, whole = self.nodes[step.pool].lost / 3600, self.start + left * step.seconds
        until = self._random.expovariate(rate) if rate else float("inf")
        taken = min(until, whole)
        self.outcome.held[step.pool] += taken
        if until >= whole:
            self.outcome.moved += round(step.moved * left)
            self._at(self.now + taken, lambda: self._freed(step, ended))
            return
        done = max(0.0, until - self.start) / step.seconds
        # What was finished by whole blocks is in S3; the block that was under way is begun anew.
        kept = int(done * step.blocks) / step.blocks
        self.outcome.lost += 1
        self.outcome.moved += round(step.moved * done)
        again = self.now + taken + self.wait
        self._at(self.now + taken, lambda: self._freed(step, lambda: None))
        self._at(again, lambda: self.ask(step, left - kept, ended))

    def _freed(self, step: Step, ended: Callable[[], None]) -> None:
        self._free[step.pool] += 1
        ended()
        self._serve(step.pool)

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), act))


class _Release:
    """One release on its way through the steps."""

    def __init__(self, simulation: Simulation, arrival: float) -> None:
        self.simulation, self.arrival = simulation, arrival
        self.ended: set[str] = set()
        self.asked: set[str] = set()

    def begin(self) -> None:
        """Ask for nodes for all steps that may run."""
        for step in self.simulation.steps:
            if step.name not in self.asked and set(step.after) <= self.ended:
                self.asked.add(step.name)
                self.simulation.ask(step, 1.0, lambda name=step.name: self._end(name))  # type: ignore[misc]

    def _end(self, name: str) -> None:
        self.ended.add(name)
        if len(self.ended) == len(self.simulation.steps):
            self.simulation.outcome.latencies.append(self.simulation.now - self.arrival)
        self.begin()
