"""Processes that share a registry, stopped at every call: all orders of their calls.

A registry in memory stands in for a real one: numbers in order, aliases to the last writer. Each
process runs the real code. Of orders that lead to the same state, of the registry and of what all
processes know, one is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from bipline.base.errors import Refused
from bipline.delivery.registries.journal import Registry
from bipline.values.promotion import JournalEntry


@dataclass
class Memory:
    """What a server keeps: a journal by number, and aliases."""

    journal: dict[int, JournalEntry] = field(default_factory=dict)
    pointed: dict[str, str] = field(default_factory=dict)

    @property
    def journal_text(self) -> str:
        """The journal without what differs from run to run."""
        return repr([(e.alias, e.action, e.version, e.expects) for e in self.journal.values()])

    @property
    def aliases_text(self) -> str:
        return repr(sorted(self.pointed.items()))

    @property
    def fingerprint(self) -> str:
        return self.journal_text + self.aliases_text


class Client:
    """A process's way to the memory. Before every call it hands over to the explorer."""

    name = "tiny"

    def __init__(self, memory: Memory, stop: Callable[[str], None] = lambda call: None) -> None:
        self._memory, self._stop = memory, stop

    def entries(self) -> dict[int, JournalEntry]:
        self._stop("entries")
        return dict(self._memory.journal)

    def append(self, entry: JournalEntry) -> int:
        self._stop("append")
        number = len(self._memory.journal) + 1
        self._memory.journal[number] = entry
        return number

    def aliases(self) -> dict[str, str]:
        self._stop("aliases")
        return dict(self._memory.pointed)

    def point(self, alias: str, version: str | None) -> None:
        self._stop(f"point {alias}")
        if version is None:
            self._memory.pointed.pop(alias, None)
        else:
            self._memory.pointed[alias] = version


class Process:
    """One command, run call by call."""

    def __init__(self, memory: Memory, command: Callable[[Registry], str]) -> None:
        explorer = getcurrent()
        self.outcome: str | None = None
        self.call, self.known = "", dict[str, Any]()

        def stop(call: str) -> None:
            explorer.switch(call)

        def body() -> None:
            try:
                self.outcome = command(Client(memory, stop))
            except Refused:
                self.outcome = "refused"
            except GreenletExit:
                self.outcome = "killed"

        self._memory, self._run = memory, greenlet(body)
        self.step()

    def step(self) -> None:
        """Make the next call, and stop before the one after it."""
        # What is read again is all that is known of it; what was written since is told apart.
        if self.call == "entries":
            self.known |= {self.call: self._memory.journal_text, "since": 0}
        elif self.call == "aliases":
            self.known |= {self.call: self._memory.aliases_text, "since": 0}
        else:
            self.known |= {"since": self.known.get("since", 0) + 1, self.call: True}
        self.call = self._run.switch()

    @property
    def state(self) -> str:
        """All that decides what this process does next."""
        return repr((self.ended, self.call, sorted(self.known.items()), self.outcome))

    @property
    def ended(self) -> bool:
        return self._run.dead

    def finish(self) -> None:
        while not self.ended:
            self.step()

    def kill(self) -> None:
        if not self.ended:
            self._run.throw(GreenletExit)
        self.outcome = self.outcome or "killed"


Schedule = tuple[int, ...]


def replayed(
    memory: Memory, commands: list[Callable[[Registry], str]], schedule: Schedule
) -> list[Process]:
    processes = [Process(memory, command) for command in commands]
    for index in schedule:
        processes[index].step()
    return processes


def schedules(
    begin: Callable[[], Memory], commands: list[Callable[[Registry], str]]
) -> Iterator[Schedule]:
    """Every order of calls up to every point, but for those that lead to a state seen before."""
    seen, waiting = set[Any](), [Schedule()]
    while waiting:
        schedule = waiting.pop()
        memory = begin()
        processes = replayed(memory, commands, schedule)
        state = (memory.fingerprint, *(each.state for each in processes))
        if state in seen:
            continue
        seen.add(state)
        yield schedule
        waiting += [(*schedule, index) for index, each in enumerate(processes) if not each.ended]
        for each in processes:
            each.kill()
