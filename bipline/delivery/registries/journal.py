"""Promotion as compare-and-set: an alias moves by an entry in a journal, and by nothing else.

An entry says which entry made the champion that it was judged against. Of all that expect the same
the one with the lowest number wins, so everybody who reads the journal sees the same champion, and
of two at once one loses. Registries have aliases that the last writer wins: here they follow the
journal. Whoever comes next sets right what a killed process left.
"""

from __future__ import annotations

import getpass
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.base.progress import note
from bipline.values.promotion import Action, History, HistoryLine, JournalEntry

PREVIOUS = "previous-"
# What is set must be there at last, however many others write.
MOST_ROUNDS = 100


class Registry(Protocol):
    """What a registry must be able to do with one registered model.

    ``append`` is the only write that decides something: numbers are given in order, each once.
    """

    name: str

    def entries(self) -> dict[int, JournalEntry]:
        """The whole journal by number."""

    def append(self, entry: JournalEntry) -> int:
        """Add an entry and return its number: the one after the last."""

    def aliases(self) -> dict[str, str]:
        """Versions by alias, as they are now."""

    def point(self, alias: str, version: str | None) -> None:
        """Set an alias, or remove it."""


@dataclass(frozen=True)
class State:
    """Where an alias stands by its journal.

    ``head`` is the last entry that won, 0 before the first; ``versions`` lead from the first
    champion to the present one; ``winners`` are the ids of all entries that won. ``adopted`` is
    what the alias pointed at before any. ``repaired`` is whether it had to be set right.
    """

    alias: str
    head: int = 0
    last: JournalEntry | None = None
    versions: tuple[str, ...] = ()
    winners: frozenset[str] = frozenset()
    adopted: str | None = None
    repaired: bool = False

    @property
    def champion(self) -> str | None:
        """The version that the alias is to point at."""
        return self.versions[-1] if self.versions else self.adopted

    @property
    def previous(self) -> str | None:
        """The champion before this one."""
        return self.versions[-2] if len(self.versions) > 1 else None


def state_of(name: str, entries: Mapping[int, JournalEntry], alias: str) -> State:
    """Where an alias stands after all entries.

    Raises Refused where one was removed, or changed after another was built on it.
    """
    state = State(alias)
    for number in range(1, max(entries, default=0) + 1):
        if number not in entries:
            raise Refused(f"the journal of {name} has lost entry {number}; somebody removed it")
        entry = entries[number]
        if entry.alias == alias and entry.expects == state.head:
            state = _after(name, state, number, entry)
    return state


def _after(name: str, state: State, number: int, entry: JournalEntry) -> State:
    last = state.last.digest if state.last else None
    versions = state.versions or ((entry.adopted,) if entry.adopted else ())
    versions = (*versions, entry.version) if entry.action == "promote" else versions[:-1]
    if entry.expects_digest != last or versions[-1:] != (entry.version,):
        raise Refused(
            f"the journal of {name}: entry {number} does not follow from entry {state.head}; "
            "one of them was changed"
        )
    winners = state.winners | {entry.id}
    return replace(state, head=number, last=entry, versions=versions, winners=winners)


def settle(registry: Registry, alias: str) -> State:
    """Make the alias, and ``previous-`` it, what the journal says, and say where that is.

    Aliases are read before the journal: one that is behind it by then was left, or is being set.
    All is read again after a write, for another process may have moved on, or have written late.
    Raises EnvironmentFailure where what is set is never there.
    """
    repaired = False
    for _ in range(MOST_ROUNDS):
        pointed = registry.aliases()
        state = state_of(registry.name, registry.entries(), alias)
        if not state.head:
            return replace(state, adopted=pointed.get(alias))
        # The way back first: where only one is set, both lead to a version that was promoted.
        wanted = {f"{PREVIOUS}{alias}": state.previous, alias: state.champion}
        wrong = {each: to for each, to in wanted.items() if pointed.get(each) != to}
        if not wrong:
            return replace(state, repaired=repaired)
        repaired = True
        for each, version in wrong.items():
            registry.point(each, version)
    raise EnvironmentFailure(f"{registry.name}@{alias}: the registry does not keep what is set")


def move(registry: Registry, state: State, entry: JournalEntry) -> State:
    """Append an entry made for a state, and settle. Raises Refused where another came first."""
    registry.append(entry)
    now = settle(registry, entry.alias)
    if entry.id not in now.winners:
        first = now.last
        who = f" ({first.user}, {first.at})" if first else ""
        raise Refused(
            f"{registry.name}@{entry.alias}: another one came first: version {now.champion} is "
            f"{entry.alias} now{who}; nothing was moved by this one, so look and run again"
        )
    return now


def entry_for(
    state: State, action: Action, version: str, package_digest: str, **more: Any
) -> JournalEntry:
    """The entry that moves an alias on from a state, by whoever is logged in, at this moment."""
    return JournalEntry(
        id=uuid.uuid4().hex,
        alias=state.alias,
        action=action,
        version=version,
        package_digest=package_digest,
        expects=state.head,
        expects_digest=state.last.digest if state.last else None,
        adopted=None if state.head else state.adopted,
        user=logged_in(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    )


def roll_back(
    registry: Registry,
    alias: str,
    check: Callable[[str], str],
    expected: str | None = None,
    **more: Any,
) -> tuple[State, bool]:
    """Give an alias back to the champion before this one, by the same door.

    ``check`` hashes a version again and gives its digest. With ``expected`` only that version is
    rolled back, so that the same request twice is done once. A rollback that was killed half way
    is finished. Raises Refused where there is no way back; whether anything changed is returned.
    """
    state = settle(registry, alias)
    is_back = state.last is not None and state.last.action == "rollback"
    if is_back and state.repaired:
        note(f"{registry.name}@{alias}: the rollback of entry {state.head} was finished")
        return state, True
    if expected is not None and expected != state.champion:
        if is_back:
            return state, False
        raise Refused(f"{registry.name}@{alias}: is version {state.champion}, not {expected}")
    if state.previous is None:
        raise Refused(f"{registry.name}@{alias}: no version was {alias} before this one")
    digest = check(state.previous)
    entry = entry_for(state, "rollback", state.previous, digest, **more)
    return move(registry, state, entry), True


def history_of(registry: Registry) -> History:
    """The whole journal and where aliases point. Nothing is written, so nothing is set right."""
    pointed, entries = registry.aliases(), registry.entries()
    aliases = sorted({entry.alias for entry in entries.values()})
    states = {alias: state_of(registry.name, entries, alias) for alias in aliases}
    lines = [
        HistoryLine(number=number, won=entry.id in states[entry.alias].winners, entry=entry)
        for number, entry in sorted(entries.items())
    ]
    champions = {alias: str(state.champion) for alias, state in states.items()}
    return History(
        model=registry.name,
        lines=tuple(lines),
        champions=champions,
        aliases=pointed,
        differs=tuple(
            f"{alias} points at {pointed.get(alias, 'nothing')}, the journal says {version}"
            for alias, version in champions.items()
            if pointed.get(alias) != version
        ),
    )


def check_alias(alias: str) -> None:
    """Raise InvalidInput for an alias that the journal keeps itself."""
    if alias.startswith(PREVIOUS):
        raise InvalidInput(f"alias {alias!r}: {PREVIOUS}NAME is kept for the way back")


def logged_in() -> str:
    """Who is logged in, as the system says; a container may know nobody."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"
