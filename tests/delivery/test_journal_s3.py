"""The journal behind ``s3://``: numbers by conditional writes, against moto's server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import boto3
import pytest

from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.delivery.registries.journal import (
    State,
    entry_for,
    history_of,
    move,
    roll_back,
    settle,
)  # fmt: skip
from bipline.delivery.registries.journal_s3 import S3Registry
from tests.storage.server import Server, running_server

BUCKET, ALIAS = "registry", "production"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture
def place(server: Server) -> str:
    server.behave()
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def promote(registry: S3Registry, version: str, state: State | None = None) -> State:
    state = state or settle(registry, ALIAS)
    return move(registry, state, entry_for(state, "promote", version, version * 8))


def test_there_and_back(place: str) -> None:
    registry = S3Registry(place, "tiny")
    assert promote(registry, "1").champion == "1"
    assert promote(S3Registry(place, "tiny"), "2").previous == "1"
    assert registry.aliases() == {ALIAS: "2", "previous-production": "1"}
    roll_back(registry, ALIAS, lambda version: version * 8)
    assert registry.aliases() == {ALIAS: "1"}
    told = history_of(S3Registry(place, "tiny"))
    assert [line.entry.action for line in told.lines] == ["promote", "promote", "rollback"]
    assert told.champions == {ALIAS: "1"} and not told.differs


def test_of_two_that_were_judged_against_one_champion_one_loses(place: str) -> None:
    one, two = S3Registry(place, "tiny"), S3Registry(place, "tiny")
    promote(one, "1")
    before, other = settle(one, ALIAS), settle(two, ALIAS)
    promote(one, "2", before)
    with pytest.raises(Refused, match="another one came first: version 2"):
        promote(two, "3", other)
    assert one.aliases()[ALIAS] == "2"
    assert [line.won for line in history_of(two).lines] == [True, True, False]


def test_a_late_write_of_an_alias_changes_nothing(place: str) -> None:
    late, quick = S3Registry(place, "tiny"), S3Registry(place, "tiny")
    promote(late, "1")
    late.aliases()
    promote(quick, "2")
    late.point(ALIAS, "1")
    assert quick.aliases()[ALIAS] == "2"


def test_many_at_once(place: str) -> None:
    promote(S3Registry(place, "tiny"), "1")
    states = {version: settle(S3Registry(place, "tiny"), ALIAS) for version in "2345"}
    outcomes: dict[str, Any] = {}

    def run(version: str) -> None:
        try:
            outcomes[version] = promote(S3Registry(place, "tiny"), version, states[version])
        except BiplineError as error:
            outcomes[version] = str(error)

    threads = [threading.Thread(target=run, args=(version,)) for version in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [version for version, outcome in outcomes.items() if isinstance(outcome, State)]
    assert len(won) == 1
    assert settle(S3Registry(place, "tiny"), ALIAS).versions == ("1", *won)
    assert sorted(S3Registry(place, "tiny").entries()) == [1, 2, 3, 4, 5]


def test_a_lost_answer_to_an_append_is_no_second_entry(place: str, server: Server) -> None:
    registry = S3Registry(place, "tiny")
    state = settle(registry, ALIAS)
    entry = entry_for(state, "promote", "1", "1" * 8)
    # What was put, and whose answer never came: the client asks once more.
    registry._place.put("promotions/00000001.json", entry.to_json().encode(), over="")
    seen = registry.entries
    registry.entries = dict  # type: ignore[method-assign, assignment]
    assert registry.append(entry) == 1
    registry.entries = seen  # type: ignore[method-assign]
    assert len(registry.entries()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("call", range(1, 12))
def test_killed_at_every_request_and_run_again(place: str, server: Server, call: int) -> None:
    promote(S3Registry(place, "tiny"), "1")
    asked = 0

    def kill(method: str, path: str) -> None:
        nonlocal asked
        asked += 1
        if asked == call:
            server.down = True

    server.before = kill
    with suppress(BiplineError):
        promote(S3Registry(place, "tiny"), "2")
    server.behave()
    registry = S3Registry(place, "tiny")
    assert registry.aliases()[ALIAS] in ("1", "2")
    state = settle(registry, ALIAS)
    if state.champion != "2":
        state = promote(registry, "2", state)
    assert state.versions == ("1", "2")
    assert registry.aliases() == {ALIAS: "2", "previous-production": "1"}


def test_a_damaged_entry_moves_nothing(place: str) -> None:
    registry = S3Registry(place, "tiny")
    promote(registry, "1")
    registry._place.put("promotions/00000001.json", b"{}")
    with pytest.raises(InvalidInput, match="not a journal entry"):
        settle(registry, ALIAS)


def test_names_that_cannot_lie_in_a_bucket() -> None:
    with pytest.raises(InvalidInput, match="model name"):
        S3Registry("s3://bucket", "a/b")
    with pytest.raises(InvalidInput, match="alias"):
        S3Registry("s3://bucket", "a").point("../b", "1")
