"""A watch tells of what it parks, and starts nothing that is no longer what it saw."""

from __future__ import annotations

from bipline.delivery.notices import telling
from bipline.settings.notify import NotifySettings
from bipline.watch.launcher import Ended
from tests.watch.test_watcher import PATIENT
from tests.watch.world import Memory, live, release, settings_of, states
from tests.webhook import webhook


def test_a_release_that_is_parked_is_told_once() -> None:
    memory = Memory(releases=[release(number) for number in range(3)])
    refused, down, _ = (each.run for each in memory.releases)
    memory.outcomes = {refused: [Ended(2, "no model")], down: [Ended(3, "down")] * 9}
    with webhook() as server, telling(NotifySettings(webhook=server.address)):
        live(memory, settings_of(retry={**PATIENT, "attempts": 3}), seed=0)
    assert sorted(states(memory).values()) == ["done", "parked", "parked"]
    told = {each["run"]: each for each in server.told}
    assert len(server.told) == 2 and set(told) == {refused, down}
    assert told[refused]["text"] == f"bipline: watch parked {refused}: no model"
    assert (told[down]["event"], told[down]["exit_code"]) == ("parked", 3)
    assert told[down]["source"] == memory.releases[1].model and told[down]["pipeline"] == "watch"


def test_what_changed_since_it_was_seen_is_not_started() -> None:
    memory = Memory(releases=[release(number) for number in range(2)])
    changed, whole = (each.run for each in memory.releases)
    memory.changed = {changed}
    live(memory, settings_of(), seed=0, steps=3000)
    assert states(memory) == {changed: "passed-over", whole: "done"}
    assert memory.starts == {whole: 1}
    assert len([name for name in memory.records if memory.releases[0].key in name]) == 2
