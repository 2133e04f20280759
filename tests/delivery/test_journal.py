"""Two promotions at once: every order of their calls, and a kill before and after each.

A process that is killed at a call has done all before it and nothing after, whether an answer was
lost or a request never came.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bipline.base.errors import InvalidInput, Refused
from bipline.delivery.registries.journal import (
    Registry,
    State,
    check_alias,
    entry_for,
    history_of,
    move,
    roll_back,
    settle,
    state_of,
)  # fmt: skip
from tests.interleaving import Client, Memory, replayed, schedules

ALIAS, BACK = "production", "previous-production"


def promote(version: str) -> Callable[[Registry], str]:
    """What ``bipline promote`` does at the door: done already, judged, moved, or refused."""

    def run(registry: Registry) -> str:
        state = settle(registry, ALIAS)
        if state.champion == version:
            return "done before"
        now = move(registry, state, entry_for(state, "promote", version, version * 8))
        return "superseded" if now.champion != version else "won"

    return run


def back(expected: str) -> Callable[[Registry], str]:
    def run(registry: Registry) -> str:
        roll_back(registry, ALIAS, lambda version: version * 8, expected)
        return "back"

    return run


def begun(versions: tuple[str, ...]) -> Memory:
    """A registry in which these versions were promoted one after the other."""
    memory = Memory()
    for version in versions:
        promote(version)(Client(memory))
    return memory


def check_whole(memory: Memory, allowed: set[str]) -> State:
    """The alias points at a version that was promoted; nothing is half."""
    assert memory.pointed[ALIAS] in allowed
    return state_of("tiny", memory.journal, ALIAS)


def check_settled(memory: Memory) -> State:
    state = state_of("tiny", memory.journal, ALIAS)
    assert memory.pointed.get(ALIAS) == state.champion
    assert memory.pointed.get(BACK) == state.previous
    return state


def winners(memory: Memory, version: str) -> int:
    """How often a version became the champion."""
    state = state_of("tiny", memory.journal, ALIAS)
    return sum(e.id in state.winners and e.version == version for e in memory.journal.values())


def begun_with_one() -> Memory:
    return begun(("1",))


PAIRS = {
    "two promotions": [promote("2"), promote("3")],
    "the same twice": [promote("2"), promote("2")],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_two_at_once_in_every_order(pair: str) -> None:
    commands, finished, lost = PAIRS[pair], 0, 0
    for schedule in schedules(begun_with_one, commands):
        memory = begun_with_one()
        processes = replayed(memory, commands, schedule)
        check_whole(memory, {"1", "2", "3"})
        if not all(each.ended for each in processes):
            for each in processes:
                each.kill()
            continue
        finished += 1
        outcomes = [each.outcome for each in processes]
        state = check_settled(memory)
        lost += outcomes.count("refused")
        assert "won" in outcomes
        if pair == "two promotions":
            won = [version for version in "23" if winners(memory, version)]
            # Who was told that it won did, and who was refused moved nothing.
            for version, outcome in zip("23", outcomes, strict=True):
                assert (outcome != "refused") == (version in won)
            assert state.versions == ("1", *won) or state.versions == ("1", *reversed(won))
        else:
            assert state.versions == ("1", "2")
    assert finished > 10 and lost > 3


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_anywhere_the_other_ends_well_and_the_rerun_finishes(victim: int) -> None:
    commands, tried = PAIRS["two promotions"], 0
    mine = "23"[victim]
    for schedule in schedules(begun_with_one, commands):
        memory = begun_with_one()
        processes = replayed(memory, commands, schedule)
        if processes[victim].ended:
            processes[1 - victim].kill()
            continue
        processes[victim].kill()
        check_whole(memory, {"1", "2", "3"})
        processes[1 - victim].finish()
        before = check_whole(memory, {"1", "2", "3"})
        assert processes[1 - victim].outcome in ("won", "superseded", "refused")
        if not winners(memory, mine):  # else it may have been killed with an alias in its hand
            check_settled(memory)
        assert commands[victim](Client(memory)) in ("won", "done before")
        state = check_settled(memory)
        assert state.champion == mine
        # What had won before the kill is not entered again.
        if before.champion == mine:
            assert state.head == before.head
        tried += 1
    assert tried > 50


def begun_with_two() -> Memory:
    return begun(("1", "2"))


@pytest.mark.slow
def test_a_rollback_beside_a_promotion_in_every_order() -> None:
    commands = [back("2"), promote("3")]
    outcomes = set()
    for schedule in schedules(begun_with_two, commands):
        memory = begun_with_two()
        processes = replayed(memory, commands, schedule)
        check_whole(memory, {"1", "2", "3"})
        if all(each.ended for each in processes):
            ended = tuple(each.outcome for each in processes)
            outcomes.add((ended, check_settled(memory).versions))
        for each in processes:
            each.kill()
    assert outcomes == OUTCOMES


# Of rollback and promotion: how each ended, and the champions one after the other. The rollback is
# of version 2 alone, so it is refused where version 3 came first.
OUTCOMES = {
    (("back", "won"), ("1", "3")),
    (("back", "refused"), ("1",)),
    (("refused", "won"), ("1", "2", "3")),
}


@pytest.mark.parametrize("command", [promote("3"), back("2")], ids=["promote", "rollback"])
def test_killed_at_every_call_and_run_again(command: Callable[[Registry], str]) -> None:
    wanted = {"promote": "3", "rollback": "1"}
    for schedule in schedules(begun_with_two, [command]):
        memory = begun_with_two()
        [process] = replayed(memory, [command], schedule)
        process.kill()
        check_whole(memory, {"2", *wanted.values()})
        command(Client(memory))
        state = check_settled(memory)
        assert state.versions in (("1", "2", "3"), ("1",))
        assert len(memory.journal) == 3


def test_an_alias_from_before_there_was_a_journal_is_adopted() -> None:
    memory = Memory(pointed={ALIAS: "7"})
    client = Client(memory)
    assert settle(client, ALIAS).champion == "7"
    assert promote("8")(client) == "won"
    assert check_settled(memory).versions == ("7", "8")
    assert memory.pointed[BACK] == "7"
    roll_back(client, ALIAS, lambda version: version * 8)
    assert check_settled(memory).versions == ("7",)
    assert BACK not in memory.pointed


def test_there_and_back_again() -> None:
    memory = begun(("1", "2", "3"))
    client = Client(memory)
    assert memory.pointed == {ALIAS: "3", BACK: "2"}
    for expected, back_to in (("2", "1"), ("1", None)):
        state, changed = roll_back(client, ALIAS, lambda version: version * 8)
        assert changed and state.champion == expected and memory.pointed.get(BACK) == back_to
    with pytest.raises(Refused, match="no version was production before"):
        roll_back(client, ALIAS, lambda version: version * 8)
    assert promote("3")(client) == "won"
    assert memory.pointed == {ALIAS: "3", BACK: "1"}


def test_the_same_rollback_twice_is_done_once() -> None:
    memory = begun(("1", "2", "3"))
    client = Client(memory)
    assert roll_back(client, ALIAS, lambda version: version * 8, "3")[1]
    assert not roll_back(client, ALIAS, lambda version: version * 8, "3")[1]
    assert check_settled(memory).champion == "2"
    promote("4")(client)
    with pytest.raises(Refused, match="is version 4, not 3"):
        roll_back(client, ALIAS, lambda version: version * 8, "3")


def test_a_version_that_does_not_hash_is_not_gone_back_to() -> None:
    memory = begun(("1", "2"))
    before = memory.fingerprint

    def damaged(version: str) -> str:
        raise Refused(f"version {version} is damaged")

    with pytest.raises(Refused, match="version 1 is damaged"):
        roll_back(Client(memory), ALIAS, damaged)
    assert memory.fingerprint == before


def test_an_alias_moved_by_hand_is_told_and_set_right() -> None:
    memory = begun(("1", "2"))
    memory.pointed[ALIAS] = "9"
    assert history_of(Client(memory)).differs == ("production points at 9, the journal says 2",)
    assert memory.pointed[ALIAS] == "9"
    assert settle(Client(memory), ALIAS).repaired
    assert history_of(Client(memory)).differs == ()


def test_a_journal_that_was_tampered_with_moves_nothing() -> None:
    memory = begun(("1", "2", "3"))
    whole = dict(memory.journal)
    del memory.journal[2]
    with pytest.raises(Refused, match="has lost entry 2"):
        settle(Client(memory), ALIAS)
    memory.journal = {**whole, 2: whole[2].model_copy(update={"version": "9"})}
    with pytest.raises(Refused, match="entry 3 does not follow from entry 2"):
        settle(Client(memory), ALIAS)
    with pytest.raises(Refused):
        history_of(Client(memory))


def test_aliases_do_not_disturb_each_other() -> None:
    memory = begun(("1", "2"))
    client = Client(memory)
    state = settle(client, "staging")
    move(client, state, entry_for(state, "promote", "5", "5" * 8))
    assert check_settled(memory).versions == ("1", "2")
    told = history_of(client)
    assert told.champions == {ALIAS: "2", "staging": "5"}
    assert [line.won for line in told.lines] == [True] * 3


def test_what_the_journal_keeps_itself_is_no_alias() -> None:
    check_alias(ALIAS)
    with pytest.raises(InvalidInput, match="kept for the way back"):
        check_alias(BACK)
