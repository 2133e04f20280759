"""Watchers that share a journal in memory, stopped before every call and killed anywhere.

A run belongs to the watcher that started it and dies with it, as the real one does; it may end at
any moment before that. What a watcher does after it was killed reaches nobody.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from bipline.settings.watch import WatchSettings
from bipline.values.release import Release
from bipline.watch.journal import Hold, Journal
from bipline.watch.launcher import Ended, Run
from bipline.watch.machine_limits import Hindrance, MachineLimits
from bipline.watch.sources import Description, release_key
from bipline.watch.watcher import Watcher

SOURCE = "tiny"
LIKE_ANY = Description("llama", 1000, "apache-2.0", frozenset({"text"}))
CONFIG = Path(__file__).parents[2] / "configs" / "compress.yaml"


def settings_of(**changes: Any) -> WatchSettings:
    """Settings of one source that is a folder by name; ``changes`` are of the source or whole."""
    own = {name: changes.pop(name) for name in ("since", "filters", "set") if name in changes}
    source = {"folder": "models", "compress": str(CONFIG), "since": "2026-01-01", **own}
    return WatchSettings.model_validate({"sources": {SOURCE: source}, **changes})


def release(number: int, **changes: Any) -> Release:
    values = {
        "key": release_key(SOURCE, "commit", str(number)), "source": SOURCE, "place": "there",
        "name": f"org/model-{number}", "revision": f"{number:040}",
        "model": f"hf:org/model-{number}@{number:040}", "published": "2026-11-01T00:00:00+00:00",
    }  # fmt: skip
    return Release(**{**values, **changes})


@dataclass
class Memory:
    """What outlives watchers: records, who holds what, and what became of every run."""

    records: dict[str, str] = field(default_factory=dict)
    holders: dict[str, object] = field(default_factory=dict)
    running: dict[str, Process] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    results: set[str] = field(default_factory=set)
    outcomes: dict[str, list[Ended]] = field(default_factory=dict)
    releases: list[Release] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    now: datetime = datetime(2026, 12, 1, tzinfo=UTC)

    def finish(self, name: str) -> None:
        """A run comes to its end by itself, whether or not somebody looks."""
        process = self.running.pop(name)
        planned = self.outcomes.get(name)
        process.ended[name] = planned.pop(0) if planned else Ended(0)
        if process.ended[name].code == 0:
            self.finished[name] += 1
            self.results.add(name)


class Client:
    """A watcher's way to the memory: journal, source, launcher and limits in one."""

    location = "memory"
    places = ("there",)

    def __init__(self, memory: Memory, process: Process) -> None:
        self._memory, self._process = memory, process

    def names(self) -> list[str]:
        self._process.stop()
        return [name for name in self._memory.records if name.startswith("releases")]

    def read(self, name: str) -> bytes | None:
        self._process.stop()
        text = self._memory.records.get(name)
        return None if text is None else text.encode()

    def create(self, name: str, text: str) -> bool:
        self._process.stop()
        return self._memory.records.setdefault(name, text) is text

    def hold(self, name: str) -> Hold | None:
        self._process.stop()
        if name in self._memory.holders:
            return None
        self._memory.holders[name] = self._process
        return Held(self._memory, self._process, name)

    def listed(self, place: str) -> list[Release]:
        self._process.stop()
        return list(self._memory.releases)

    def is_still(self, release: Release) -> bool:
        self._process.stop()
        return release.run not in self._memory.changed

    def described(self, release: Release) -> Description:
        return LIKE_ANY

    def finished(self, run: Run) -> Ended | None:
        self._process.stop()
        return Ended(0) if run.name in self._memory.results else None

    def forget(self, run: Run) -> None:
        self._process.stop()
        self._memory.results.discard(run.name)

    def start(self, run: Run, descriptors: Sequence[int]) -> Started:
        self._process.stop()
        memory = self._memory
        assert run.name not in memory.running, "one release runs twice at once"
        assert not memory.finished[run.name], "a run that was done is started again"
        memory.starts[run.name] += 1
        self._process.ended.pop(run.name, None)
        memory.running[run.name] = self._process
        return Started(memory, self._process, run.name)


class Held:
    """A hold in memory."""

    held = True
    descriptors: tuple[int, ...] = ()

    def __init__(self, memory: Memory, process: Process, name: str) -> None:
        self._memory, self._process, self._name = memory, process, name

    def release(self) -> None:
        if self._memory.holders.get(self._name) is self._process:
            del self._memory.holders[self._name]


class Started:
    """A run in memory; it is over when the world says so."""

    log = None

    def __init__(self, memory: Memory, process: Process, name: str) -> None:
        self._memory, self._process, self._name = memory, process, name

    def ended(self) -> Ended | None:
        self._process.stop()
        return self._process.ended.get(self._name)

    def stop(self) -> None:
        self._memory.running.pop(self._name, None)
        self._process.ended.setdefault(self._name, Ended(130))


class Room(MachineLimits):
    """So many runs at once, for each watcher."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self.watcher: Watcher | None = None

    def take(self, run: Run) -> tuple[Hold, ...] | Hindrance:
        assert self.watcher is not None
        return Hindrance("full", True) if len(self.watcher.active) >= self._runs else ()


class Process:
    """One watcher that looks, starts and reaps without end, a call at a time."""

    def __init__(self, memory: Memory, settings: WatchSettings) -> None:
        self._memory, self._explorer = memory, getcurrent()
        self._dead = False
        self.ended: dict[str, Ended] = {}
        client, room = Client(memory, self), Room(settings.limits.runs)
        self.watcher = room.watcher = Watcher(
            settings, {SOURCE: client}, Journal(client), client, room, lambda: memory.now
        )
        self._run = greenlet(self._body)

    def stop(self) -> None:
        """Hand over to whoever steps this watcher; a killed one gets no further."""
        if self._dead:
            raise GreenletExit
        self._explorer.switch()
        if self._dead:
            raise GreenletExit

    def step(self) -> None:
        self._run.switch()

    def kill(self) -> None:
        """As kill -9: its holds are free, its runs gone, and it does nothing more."""
        self._dead = True
        memory = self._memory
        memory.holders = {name: who for name, who in memory.holders.items() if who is not self}
        memory.running = {name: who for name, who in memory.running.items() if who is not self}
        if not self._run.dead and self._run:
            self._run.throw(GreenletExit)

    def _body(self) -> None:
        while True:
            self.watcher.look()
            self.watcher.start_due()
            self.watcher.reap()
            self.stop()


def states(memory: Memory) -> dict[str, str]:
    """Where every release stands, by the name of its run."""
    reader = Journal(Reader(memory))  # type: ignore[arg-type]
    return {each.release.run: each.last.state for each in reader.standings().values()}


class Reader:
    """Reads the memory without a stop."""

    location = "memory"

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def names(self) -> list[str]:
        return [name for name in self._memory.records if name.startswith("releases")]

    def read(self, name: str) -> bytes | None:
        text = self._memory.records.get(name)
        return None if text is None else text.encode()


def live(
    memory: Memory,
    settings: WatchSettings,
    seed: int,
    watchers: int = 2,
    kills: int = 0,
    steps: int = 20_000,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Let watchers work in an order that a seed decides, killed and replaced so many times.

    Runs end at moments of the seed's too. Gives the kills that were made.
    """
    draw = random.Random(seed)
    processes = [Process(memory, settings) for _ in range(watchers)]
    killed = 0
    for step in range(steps):
        index = draw.randrange(watchers)
        processes[index].step()
        if memory.running and draw.random() < 0.02:
            memory.finish(draw.choice(sorted(memory.running)))
        if killed < kills and draw.random() < 0.003:
            processes[index].kill()
            processes[index] = Process(memory, settings)
            killed += 1
        if step % 50 == 0:
            memory.now += timedelta(seconds=1)
            if is_over() and killed == kills:
                break
    for process in processes:
        process.kill()
    return killed
