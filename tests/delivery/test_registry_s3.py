"""The journal behind ``s3://``: numbers by conditional writes, against moto's server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress

import boto3
import pytest

from bipline.base.errors import BiplineError, InvalidInput
from bipline.delivery.registries.journal import (
    State,
    entry_for,
    move,
    settle,
)  # fmt: skip
from bipline.delivery.registries.s3 import S3Registry
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


def test_a_late_write_of_an_alias_changes_nothing(place: str) -> None:
    late, quick = S3Registry("tiny", place), S3Registry("tiny", place)
    promote(late, "1")
    late.aliases()
    promote(quick, "2")
    late.point(ALIAS, "1")
    assert quick.aliases()[ALIAS] == "2"


@pytest.mark.slow
@pytest.mark.parametrize("call", range(1, 12))
def test_killed_at_every_request_and_run_again(place: str, server: Server, call: int) -> None:
    promote(S3Registry("tiny", place), "1")
    asked = 0

    def kill(method: str, path: str) -> None:
        nonlocal asked
        asked += 1
        if asked == call:
            server.down = True

    server.before = kill
    with suppress(BiplineError):
        promote(S3Registry("tiny", place), "2")
    server.behave()
    registry = S3Registry("tiny", place)
    assert registry.aliases()[ALIAS] in ("1", "2")
    state = settle(registry, ALIAS)
    if state.champion != "2":
        state = promote(registry, "2", state)
    assert state.versions == ("1", "2")
    assert registry.aliases() == {ALIAS: "2", "previous-production": "1"}


def test_a_damaged_entry_moves_nothing(place: str) -> None:
    registry = S3Registry("tiny", place)
    promote(registry, "1")
    registry._place.put("promotions/00000001.json", b"{}")
    with pytest.raises(InvalidInput, match="not a journal entry"):
        settle(registry, ALIAS)


def test_names_that_cannot_lie_in_a_bucket() -> None:
    with pytest.raises(InvalidInput, match="model name"):
        S3Registry("a/b", "s3://bucket")
    for odd in ("../b", "a b", "", "x" * 200):
        with pytest.raises(InvalidInput, match="alias"):
            S3Registry("a", "s3://bucket").point(odd, "1")
