"""A release starts one run: two watchers, kills, retries, limits and where to begin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bipline.base.errors import EnvironmentFailure
from bipline.settings.watch import RetrySettings
from bipline.values.release import WatchRecord
from bipline.watch.endings import backoff, ending
from bipline.watch.launcher import Ended
from bipline.watch.watcher import watch
from tests.watch.world import Memory, Process, live, release, settings_of, states

MANY = 50
PATIENT = {"attempts": 100, "first": 1.0, "longest": 4.0}


def world(releases: int = MANY) -> Memory:
    return Memory(releases=[release(number) for number in range(releases)])


QUICK, ALL = 4, 40
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= QUICK)) for seed in range(ALL)]


@pytest.mark.parametrize("seed", SEEDS)
def test_fifty_releases_two_watchers_ten_kills(seed: int) -> None:
    memory = world()
    settings = settings_of(limits={"runs": 4}, retry=PATIENT)

    def is_over() -> bool:
        return len(memory.finished) == MANY and set(states(memory).values()) == {"done"}

    assert live(memory, settings, seed, kills=10, is_over=is_over) == 10
    names = {each.run for each in memory.releases}
    assert states(memory) == dict.fromkeys(names, "done")
    assert memory.finished == dict.fromkeys(names, 1)
    # What was started twice is what a kill ended.
    assert MANY <= memory.starts.total() <= MANY + 10 * settings.limits.runs


def test_killed_before_every_single_call() -> None:
    """The first watcher is killed before its n-th call, for every n; the second one finishes."""
    settings = settings_of(retry=PATIENT)
    for calls in range(40):
        memory = world(2)
        first = Process(memory, settings)
        for call in range(calls):
            first.step()
            if call % 7 == 0 and memory.running:
                memory.finish(next(iter(memory.running)))
        first.kill()
        live(memory, settings, seed=calls, watchers=1, steps=500)
        assert set(states(memory).values()) == {"done"}, calls
        assert set(memory.finished.values()) == {1}, calls


def test_a_look_that_fails_leaves_no_run_unwatched() -> None:
    """A run whose hold was lost is stopped, though no source and no journal answers."""
    calls: list[str] = []

    class Blind:
        def __init__(self) -> None:
            self.active = {"a": 1}

        def look(self) -> None:
            calls.append("look")
            raise EnvironmentFailure("the journal does not answer")

        def reap(self) -> bool:
            calls.append("reap")
            if len(calls) > 6:
                raise KeyboardInterrupt
            return False

        def start_due(self) -> None:
            calls.append("start")

        def stop(self) -> None:
            calls.append("stop")

    with pytest.raises(KeyboardInterrupt):
        watch(Blind(), once=False, every=900, sleep=0.0)  # type: ignore[arg-type]
    assert calls.count("look") == 1 and calls.count("reap") > 1 and calls[-1] == "stop"


def test_a_thousand_old_releases_start_nothing_and_the_next_one_does() -> None:
    memory = world(1000)
    settings = settings_of(since="now")
    live(memory, settings, seed=0, steps=300)
    assert not memory.starts and not states(memory)
    # An old one under another name is the same release; another revision is a new one.
    memory.releases[0] = release(0, name="org/renamed")
    memory.releases.append(release(1000))
    live(memory, settings, seed=1, steps=2000)
    assert memory.finished == {release(1000).run: 1}


def test_a_date_to_begin_with() -> None:
    memory = world(0)
    for number, published in enumerate(("2026-10-31T23:59:59+00:00", "2026-11-01", "")):
        memory.releases.append(release(number, published=published))
    live(memory, settings_of(since="2026-11-01"), seed=0, steps=500)
    assert memory.finished == {release(1).run: 1}


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "done"), (1, "parked"), (2, "parked"), (3, "retry-at"), (-9, "retry-at")],
)
def test_what_an_exit_code_means(code: int, state: str) -> None:
    memory = world(1)
    name = memory.releases[0].run
    memory.outcomes[name] = [Ended(code, "why")]
    live(memory, settings_of(), seed=0, steps=1500)
    assert states(memory) == {name: state}
    assert memory.starts[name] == 1


def test_a_failure_of_the_surroundings_is_tried_again_until_it_is_parked() -> None:
    memory = world(1)
    name = memory.releases[0].run
    memory.outcomes[name] = [Ended(3, "down")] * 2
    live(memory, settings_of(retry=PATIENT), seed=0)
    assert states(memory) == {name: "done"} and memory.starts[name] == 3
    memory = world(1)
    memory.outcomes[name] = [Ended(3, "down")] * 9
    live(memory, settings_of(retry={**PATIENT, "attempts": 4}), seed=0)
    assert states(memory) == {name: "parked"} and memory.starts[name] == 4


def test_a_run_that_ends_its_watcher_every_time_is_parked() -> None:
    memory, settings = world(1), settings_of(retry={**PATIENT, "attempts": 3})
    for _ in range(6):
        watcher = Process(memory, settings)
        for _ in range(100):
            watcher.step()
        watcher.kill()
    assert set(states(memory).values()) == {"parked"}
    assert memory.starts.total() == 3


NOW = datetime(2026, 12, 1, tzinfo=UTC)


def record(**changes: Any) -> WatchRecord:
    return WatchRecord(state="running", at=NOW.isoformat(), watcher="w", **changes)


def waited(ended: Ended, failures: int = 0) -> float:
    retry = RetrySettings(first=60, factor=2, longest=1000, attempts=20)
    state, told = ending(ended, record(failures=failures), retry, NOW)
    assert state == "retry-at"
    return (datetime.fromisoformat(told["until"]) - NOW) / timedelta(seconds=1)


def test_waits_grow_and_a_server_that_asks_for_longer_is_heeded() -> None:
    assert [waited(Ended(3), failures) for failures in range(6)] == [60, 120, 240, 480, 960, 1000]
    assert waited(Ended(3, wait=4000)) == 4000
    assert waited(Ended(3, wait=5), 1) == 120
    assert waited(Ended(130)) == waited(Ended(-15, asked=True)) == 0
    assert waited(Ended(-15)) > 0, "another's signal is a failure, or it would be tried for ever"


def test_what_was_stopped_is_no_failure() -> None:
    state, told = ending(Ended(130), record(failures=7), RetrySettings(attempts=8), NOW)
    assert (state, told["failures"]) == ("retry-at", 7)


def test_waits_stay_numbers() -> None:
    retry = RetrySettings(first=1, factor=100, longest=10.0**9, attempts=10**6)
    assert backoff(retry, 10**6) == 10.0**9


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"families": ("qwen3",)}, "family llama"),
        ({"parameters_at_most": 999}, "more than 999"),
        ({"parameters_at_least": "1.001K"}, "fewer than 1,001"),
        ({"licences": ("mit",)}, "licence 'apache-2.0'"),
        ({"tags": ("text", "chat")}, "without the tag chat"),
    ],
)
def test_filters_say_what_a_release_lacks(filters: dict[str, Any], reason: str) -> None:
    memory = world(1)
    live(memory, settings_of(filters=filters), seed=0, steps=200)
    [text] = memory.records.values()
    assert "passed-over" in text and reason in text
    live(memory, settings_of(filters=filters), seed=0, steps=200)
    assert len(memory.records) == 1, "asked again without a reason"
    live(memory, settings_of(filters={}), seed=0, steps=800)
    assert memory.finished.total() == 1, "wider filters let it through"
