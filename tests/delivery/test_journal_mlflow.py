"""The journal in a real MLflow: versions as entries, the race, kills, and what tags are worth.

Each test runs on a database in a file; and, among the slow ones, on a server over PostgreSQL whose
artifacts lie in S3.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
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
from bipline.delivery.registries.journal_mlflow import ENTRY_TAG, MlflowRegistry, pointed_at
from bipline.delivery.registries.mlflow import track_and_register
from bipline.delivery.registries.mlflow_run import RunContent
from bipline.delivery.registries.mlflow_service import prepare_experiment, prepare_tracking
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import read_manifest
from tests.gated import asked, documents, evidence, verdict
from tests.mlflow_tracked import tracked_at
from tests.servers import object_of, team_servers

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
ALIAS, BACK = "production", "previous-production"


@pytest.fixture(scope="module", params=["file", pytest.param("server", marks=pytest.mark.slow)])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    state = tmp_path_factory.mktemp("journal")
    if request.param == "file":
        yield state, prepare_tracking(state, "compress")
        return
    with team_servers(state) as address:
        prepare_experiment(address, "compress")
        yield state, address


@pytest.fixture
def tracking(database: tuple[Path, str]) -> Iterator[Path]:
    """MLflow pointed at the tests' database."""
    with tracked_at(database[1], "compress"):
        yield database[0]


@pytest.fixture(scope="module")
def stored(database: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Four versions of one model, whose packages lie in MLflow."""
    import mlflow

    with pointed_at(database[1]):
        mlflow.set_experiment("compress")
        for number in "1234":
            package = tmp_path_factory.mktemp("packages") / number
            with atomic_directory(package, "package") as writer:
                (writer.path / "README.md").write_text(f"# {number}\n")
            track_and_register(
                package=package, package_digest=read_manifest(package).digest, name="stored",
                alias="candidate", content=RunContent(),
            )  # fmt: skip
        client = mlflow.MlflowClient()
        return [client.get_model_version("stored", number) for number in "1234"]


@pytest.fixture
def registry(tracking: Path, stored: list[Any], tmp_path: Path) -> MlflowRegistry:
    """A registered model of its own with these versions, none of them served."""
    import mlflow

    client, name = mlflow.MlflowClient(), f"tiny-{tmp_path.name}"
    client.create_registered_model(name)
    for each in stored:
        client.create_model_version(
            name,
            each.source,
            run_id=each.run_id,
            tags=dict(each.tags),
            model_id=each.source.removeprefix("models:/"),
        )
    client.set_registered_model_alias(name, "candidate", "4")
    return MlflowRegistry(name)


def promote(registry: MlflowRegistry, version: str, state: State | None = None) -> State:
    state = state or settle(registry, ALIAS)
    digest = registry.check(registry.version(version))
    return move(registry, state, entry_for(state, "promote", version, digest))


def test_there_and_back(registry: MlflowRegistry) -> None:
    promote(registry, "1")
    state = promote(registry, "2")
    assert (state.champion, state.previous) == ("2", "1")
    assert registry.aliases() == {"candidate": "4", ALIAS: "2", BACK: "1"}
    state, changed = roll_back(
        registry, ALIAS, lambda version: registry.check(registry.version(version)), reason="slow"
    )
    assert changed and registry.aliases() == {"candidate": "4", ALIAS: "1"}
    told = history_of(MlflowRegistry(registry.name))
    assert [(line.number, line.won) for line in told.lines] == [(1, True), (2, True), (3, True)]
    assert told.lines[2].entry.reason == "slow" and not told.differs
    assert registry.version(f"@{ALIAS}") == registry.version("1")


def test_of_two_that_were_judged_against_one_champion_one_loses(registry: MlflowRegistry) -> None:
    promote(registry, "1")
    before = settle(registry, ALIAS)
    promote(registry, "2", before)
    with pytest.raises(Refused, match="another one came first: version 2 is production now") as e:
        promote(registry, "3", before)
    assert "\n" not in str(e.value)
    assert registry.aliases()[ALIAS] == "2"
    assert [line.won for line in history_of(registry).lines] == [True, True, False]


def test_many_at_once(registry: MlflowRegistry) -> None:
    promote(registry, "1")
    state = settle(registry, ALIAS)
    outcomes: dict[str, Any] = {}

    def run(version: str) -> None:
        try:
            entry = entry_for(state, "promote", version, "d" * 64)
            outcomes[version] = move(MlflowRegistry(registry.name), state, entry)
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
    assert registry.aliases()[ALIAS] == won[0]
    assert sorted(registry.entries()) == [1, 2, 3, 4]


class Killed(BaseException):
    pass


CALLS = ("aliases", "entries", "append", "point")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(8))
def test_killed_at_every_call_and_run_again(
    registry: MlflowRegistry, monkeypatch: pytest.MonkeyPatch, call: int, after: bool
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


@pytest.mark.parametrize("call", range(8))
def test_another_promotes_between_any_two_calls(
    registry: MlflowRegistry, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Whoever appends first wins; the other loses in one line, and every alias is the winner's."""
    promote(registry, "1")
    state, other = settle(registry, ALIAS), MlflowRegistry(registry.name)
    made, outcomes = 0, []

    def attempt(who: MlflowRegistry, version: str) -> None:
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
    settled = settle(MlflowRegistry(registry.name), ALIAS)
    assert settled.versions == ("1", winner)
    assert registry.aliases() == {"candidate": "4", ALIAS: winner, BACK: "1"}


def test_a_verdict_is_kept_beside_its_version(registry: MlflowRegistry) -> None:
    import mlflow

    found = verdict(asked({"figure": "parameters", "at_most": 1}), evidence(documents()))
    version = registry.version("1")
    registry.keep(version, found)
    client = mlflow.MlflowClient()
    assert client.get_model_version(registry.name, "1").tags["verdict.production"] == found.digest
    run = client.get_run(version.run_id)
    stored = mlflow.artifacts.load_text(
        f"{run.info.artifact_uri}/verdicts/{found.digest[:16]}.json"
    )
    assert stored == found.to_json()


def test_when_it_was_evaluated(registry: MlflowRegistry) -> None:
    import mlflow

    assert registry.version("1").evaluated_at is None
    at = datetime(2026, 11, 28, 7, tzinfo=UTC)
    registry.tell_evaluated("1", at)
    assert registry.version("1").evaluated_at == at
    for typed in ("yesterday", "2026-11-28T07:00:00"):
        mlflow.MlflowClient().set_model_version_tag(registry.name, "1", "evaluated_at", typed)
        assert registry.version("1").evaluated_at is None


def test_what_is_no_entry_stops_everything(registry: MlflowRegistry) -> None:
    import mlflow

    promote(registry, "1")
    client, journal = mlflow.MlflowClient(), f"{registry.name}.promotions"
    client.delete_model_version_tag(journal, "1", ENTRY_TAG)
    with pytest.raises(Refused, match="is no entry of the journal"):
        settle(registry, ALIAS)
    client.set_model_version_tag(journal, "1", ENTRY_TAG, "{}")
    with pytest.raises(InvalidInput, match="not a journal entry"):
        settle(registry, ALIAS)


def test_a_deleted_entry_is_missed(registry: MlflowRegistry) -> None:
    import mlflow

    promote(registry, "1")
    promote(registry, "2")
    mlflow.MlflowClient().delete_model_version(f"{registry.name}.promotions", "1")
    with pytest.raises(Refused, match="has lost entry 1"):
        promote(registry, "3")
    assert registry.aliases()[ALIAS] == "2"


def test_a_flipped_byte_is_not_pointed_at(registry: MlflowRegistry) -> None:
    promote(registry, "1")
    version = registry.version("2")
    stored = object_of(version.location, "README.md")
    whole = stored.read()
    stored.write(b"# other\n")
    try:
        with pytest.raises(Refused, match=r"README\.md"):
            promote(registry, "2")
    finally:
        stored.write(whole)
    assert registry.aliases()[ALIAS] == "1"
    assert state_of(registry.name, registry.entries(), ALIAS).head == 1


def test_another_address_for_a_while(tracking: Path, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    other = f"sqlite:///{tmp_path}/other.db"
    with pointed_at(other):
        assert mlflow.get_tracking_uri() == other
    with pytest.raises(KeyError), pointed_at(other):
        raise KeyError
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before


def test_a_version_that_is_not_there(registry: MlflowRegistry) -> None:
    with pytest.raises(InvalidInput, match="has no such version"):
        registry.version("9")
    with pytest.raises(InvalidInput, match="has no such version"):
        registry.version("@nobody")
