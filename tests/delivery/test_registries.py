"""One suite for every registry: register, gate, promote, race, kill, roll back, and what differs.

MLflow on a database in a file, and, among the slow ones, on a server over PostgreSQL; S3 and
SageMaker against moto; the hub against a stand-in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.delivery.registries.journal import (
    State,
    entry_for,
    history_of,
    move,
    roll_back,
    settle,
    state_of,
)  # fmt: skip
from bipline.delivery.registries.promotion import (
    Gate,
    GateRefused,
    promote_version,
    roll_back_alias,
)
from tests.delivery.worlds import World, running_world
from tests.gated import asked

ALIAS, BACK = "production", "previous-production"
SLOW = pytest.mark.slow
KINDS = [
    "mlflow file", pytest.param("mlflow server", marks=SLOW), "s3",
    pytest.param("sagemaker", marks=SLOW), pytest.param("hub", marks=SLOW),
]  # fmt: skip
# Where every call is many requests, other tests stop at requests, and a race is one of the slow.
MLFLOW = pytest.mark.parametrize("world", KINDS[:2], indirect=True)
RACED = pytest.mark.parametrize(
    "world", [*KINDS[:2], pytest.param("s3", marks=SLOW), *KINDS[3:]], indirect=True
)
OPEN = Gate(asked({"figure": "parameters", "at_most": 1000}), "open")
SHUT = Gate(asked({"figure": "parameters", "at_most": 1}), "shut")


@pytest.fixture(scope="module", params=KINDS)
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with running_world(request.param, tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture
def registry(world: World) -> Any:
    """A registered model of its own with four versions, none of them served."""
    return world.begun()


def promote(registry: Any, version: str, state: State | None = None) -> State:
    state = state or settle(registry, ALIAS)
    digest = registry.check(registry.find(version))
    return move(registry, state, entry_for(state, "promote", version, digest))


def gated(registry: Any, number: str, gate: Gate) -> Any:
    version = registry.find(number)
    registry.check(version)
    return promote_version(registry, version, ALIAS, gate, registry.evidence(version))


def test_through_a_gate_there_and_back(world: World, registry: Any) -> None:
    assert gated(registry, "1", OPEN).changed
    done = gated(registry, "2", OPEN)
    assert (done.version, done.previous) == ("2", "1")
    assert done.verdict.champion.version == "1" and not done.verdict.refusals
    with pytest.raises(GateRefused, match="version 3 is not made production"):
        gated(registry, "3", SHUT)
    assert registry.aliases() == {"candidate": "4", ALIAS: "2", BACK: "1"}
    assert roll_back_alias(registry, ALIAS, reason="slow", by="Ada").version == "1"
    assert registry.aliases() == {"candidate": "4", ALIAS: "1"}
    told = history_of(world.opened(registry))
    assert [(line.number, line.won) for line in told.lines] == [(1, True), (2, True), (3, True)]
    assert [line.entry.action for line in told.lines] == ["promote", "promote", "rollback"]
    assert told.lines[2].entry.reason == "slow" and told.champions == {ALIAS: "1"}
    assert not told.differs
    assert registry.find(f"@{ALIAS}") == registry.find("1")
    assert registry.find("@candidate").number == "4"


def test_the_same_twice_is_done_once(registry: Any) -> None:
    gated(registry, "1", OPEN)
    assert not gated(registry, "1", SHUT).changed
    assert sorted(registry.entries()) == [1]


def test_a_package_comes_back_whole(world: World, registry: Any, tmp_path: Path) -> None:
    fetched = registry.fetch(registry.find("2"), tmp_path)
    for path in world.packages[1].rglob("*"):
        if path.is_file():
            name = path.relative_to(world.packages[1])
            assert (fetched / name).read_bytes() == path.read_bytes(), name


def test_of_two_that_were_judged_against_one_champion_one_loses(
    world: World, registry: Any
) -> None:
    promote(registry, "1")
    before, other = settle(registry, ALIAS), world.opened(registry)
    settle(other, ALIAS)
    promote(registry, "2", before)
    with pytest.raises(Refused, match="another one came first: version 2 is production now") as e:
        promote(other, "3", before)
    assert "\n" not in str(e.value)
    assert registry.aliases()[ALIAS] == "2"
    assert [line.won for line in history_of(registry).lines] == [True, True, False]


def test_many_at_once(world: World, registry: Any) -> None:
    promote(registry, "1")
    state = settle(registry, ALIAS)
    outcomes: dict[str, Any] = {}

    def run(version: str) -> None:
        try:
            entry = entry_for(state, "promote", version, "d" * 64)
            outcomes[version] = move(world.opened(registry), state, entry)
        except BiplineError as error:
            outcomes[version] = error

    threads = [threading.Thread(target=run, args=(version,)) for version in "234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [version for version, outcome in outcomes.items() if isinstance(outcome, State)]
    assert len(won) == 1, outcomes
    assert all(isinstance(outcomes[each], Refused) for each in "234" if each not in won)
    assert settle(world.opened(registry), ALIAS).versions == ("1", *won)
    assert registry.aliases()[ALIAS] == won[0]
    assert sorted(registry.entries()) == [1, 2, 3, 4]


class Killed(BaseException):
    pass


CALLS = ("aliases", "entries", "append", "point")


@MLFLOW
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(9))
def test_killed_at_every_call_and_run_again(
    world: World, registry: Any, monkeypatch: pytest.MonkeyPatch, call: int, after: bool
) -> None:
    promote(registry, "1")
    state, made = settle(registry, ALIAS), 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal made
            made += 1
            if made - 1 != call:
                return real(*arguments)
            if after:
                real(*arguments)
            raise Killed

        return run

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(registry, name, dying(getattr(registry, name)))
        try:
            promote(registry, "2", state)
        except Killed:
            pass
        else:
            assert call >= made
    there = registry.aliases()
    assert (there[ALIAS], there.get(BACK)) in (("1", None), ("1", "1"), ("2", "1"))
    now = settle(registry, ALIAS)
    if now.champion != "2":
        now = promote(registry, "2", now)
    assert now.versions == ("1", "2")
    assert registry.aliases() == {"candidate": "4", ALIAS: "2", BACK: "1"}


@RACED
@pytest.mark.parametrize("call", range(9))
def test_another_promotes_between_any_two_calls(
    world: World, registry: Any, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Whoever appends first wins; the other loses in one line, and every alias is the winner's."""
    promote(registry, "1")
    state, other = settle(registry, ALIAS), world.opened(registry)
    made, outcomes = 0, []

    def attempt(who: Any, version: str) -> None:
        try:
            promote(who, version, state)
            outcomes.append((version, None))
        except Refused as error:
            outcomes.append((version, str(error)))

    def interrupted(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal made
            made += 1
            if made - 1 == call:
                attempt(other, "3")
            return real(*arguments)

        return run

    for name in CALLS:
        monkeypatch.setattr(registry, name, interrupted(getattr(registry, name)))
    attempt(registry, "2")
    if len(outcomes) == 1:
        assert call >= made, "the other was to run"
        return
    [winner] = [version for version, refused in outcomes if refused is None]
    [line] = [refused for _, refused in outcomes if refused is not None]
    assert line and "another one came first" in line and "\n" not in line
    settled = settle(world.opened(registry), ALIAS)
    assert settled.versions == ("1", winner)
    assert registry.aliases() == {"candidate": "4", ALIAS: winner, BACK: "1"}


def test_a_deleted_entry_is_missed(world: World, registry: Any) -> None:
    promote(registry, "1")
    promote(registry, "2")
    world.delete_entry(registry, 1)
    with pytest.raises(Refused, match="has lost entry 1"):
        promote(registry, "3")
    assert registry.aliases()[ALIAS] == "2"


def test_a_flipped_byte_is_not_pointed_at(world: World, registry: Any) -> None:
    promote(registry, "1")
    with world.damaged(registry, "2"), pytest.raises(Refused, match="the registry's copy is dama"):
        promote(registry, "2")
    assert registry.aliases()[ALIAS] == "1"
    assert state_of(registry.name, registry.entries(), ALIAS).head == 1
    promote(registry, "2")
    with world.damaged(registry, "1"), pytest.raises(Refused, match="the registry's copy is dama"):
        roll_back_alias(registry, ALIAS)
    assert registry.aliases()[ALIAS] == "2"


def test_a_version_that_is_not_there(registry: Any) -> None:
    for wanted in ("9", "@nobody", "0", "x", "-1"):
        with pytest.raises(InvalidInput, match="has no such version"):
            registry.find(wanted)


def test_a_rollback_that_is_run_twice_is_done_once(registry: Any) -> None:
    promote(registry, "1")
    promote(registry, "2")
    for changed in (True, False):
        assert roll_back(registry, ALIAS, lambda v: v, "2")[1] is changed
    assert settle(registry, ALIAS).champion == "1"
