"""Notices: what is posted, how often it is tried, and that nothing fails of it or leaks by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.delivery import notices
from bipline.delivery.notices import about, failures_told, is_telling, tell, telling
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load
from bipline.settings.notify import EVENTS, VARIABLE, NotifySettings
from bipline.values.notice import Notice
from tests.storage.server import free_port
from tests.webhook import SECRET_PATH, Webhook, webhook

MOVED = Notice(event="promotion", pipeline="promote", model="m", version="2", alias="production")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(notices, "WAITS", (0.01, 0.02))
    with webhook() as running:
        yield running


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(notices, "note", lines.append)
    return lines


def test_what_is_posted(server: Webhook, said: list[str]) -> None:
    with telling(NotifySettings(webhook=server.address)):
        about(run="compress-1")
        tell(MOVED)
    assert not is_telling()
    [told] = server.told
    assert told["text"] == "bipline: m version 2 is now production"
    assert told["schema_version"] == 1 and told["at"] and told["host"]
    shown = {name: told[name] for name in ("event", "pipeline", "model", "version", "alias", "run")}
    assert shown == {**MOVED.model_dump(include={*shown}), "run": "compress-1"}
    assert None not in told.values() and "log" not in told
    assert server.headers[0]["Content-Type"] == "application/json" and not said
    tell(MOVED)
    assert len(server.told) == 1, "nobody listens any more"


@pytest.mark.parametrize("event", EVENTS)
def test_only_what_is_asked_for_is_told(server: Webhook, event: Any) -> None:
    others = tuple(each for each in EVENTS if each != event)
    for on, count in (((event,), 1), (others, 0), ((), 0)):
        server.told.clear()
        with telling(NotifySettings(webhook=server.address, on=on)):
            tell(MOVED.model_copy(update={"event": event, "reason": "why"}))
        assert len(server.told) == count
        assert all(each["text"].endswith(": why") for each in server.told)


def test_a_failure_is_told_with_its_exit_code(server: Webhook) -> None:
    errors = (Refused("a"), InvalidInput("b"), EnvironmentFailure("c"), KeyError("d"))
    with telling(NotifySettings(webhook=server.address)):
        for error in errors:
            with pytest.raises(type(error)), failures_told("compress", "hf:org/model"):
                raise error
        with pytest.raises(KeyboardInterrupt), failures_told("compress"):
            raise KeyboardInterrupt
    assert [each["exit_code"] for each in server.told] == [1, 2, 3, 1]
    assert server.told[2]["text"] == "bipline: compress of hf:org/model failed (exit 3): c"


@pytest.mark.parametrize(
    ("codes", "tries", "taken"),
    [([503, 500], 3, True), ([503, 500, 502], 3, False), ([429], 2, True), ([404], 1, False),
     ([302], 1, False)],
)  # fmt: skip
def test_a_webhook_that_fails_is_tried_again_where_that_may_help(
    server: Webhook, said: list[str], codes: list[int], tries: int, taken: bool
) -> None:
    server.codes = [*codes]
    with telling(NotifySettings(webhook=server.address)):
        tell(MOVED)
    assert len(server.told) == tries and set(server.paths) == {SECRET_PATH}
    assert [f"it answers {codes[-1]}" in line for line in said] == ([] if taken else [True])
    assert SECRET_PATH not in str(said)


def test_one_that_is_gone_or_hangs_costs_seconds_and_a_line(
    server: Webhook, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"http://127.0.0.1:{free_port()}{SECRET_PATH}"
    for address in (gone, f"http://no-such-host.invalid{SECRET_PATH}"):
        with telling(NotifySettings(webhook=address)):
            tell(MOVED)
    server.delay = 1.0
    monkeypatch.setattr(notices, "DEADLINE_SECONDS", 0.2)
    began = time.monotonic()
    with telling(NotifySettings(webhook=server.address)):
        tell(MOVED)
    assert time.monotonic() - began < 0.9 and len(server.told) == 1
    assert len(said) == 3 and "does not end its answer" in said[2]
    assert "at http://127.0.0.1 did not take the notice of a promotion" in said[0]
    assert SECRET_PATH not in str(said)


def test_secrets_of_the_environment_leave_no_machine(
    server: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "TEAM_PASSWORD", "OPENAI_APIKEY"):
        monkeypatch.setenv(name, f"value-of-{name}")
        reason = f"asked value-of-{name} at http://ada:lovelace@host/?token=abc\x1b[31m <!channel>"
        with telling(NotifySettings(webhook=server.address)):
            tell(MOVED.model_copy(update={"event": "failure", "reason": reason}))
        told = str(server.told.pop())
        assert "asked *** at http://host/?token=***" in told and "\x1b" not in told
        assert "value-of" not in told and "lovelace" not in told
        assert "&lt;!channel&gt;" in told, "Slack would call everybody"


def test_where_the_address_comes_from(server: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    with telling(NotifySettings()):
        tell(MOVED)
    assert not server.told
    monkeypatch.setenv(VARIABLE, server.address)
    monkeypatch.setenv("TEAM", f" {server.address}\n")
    tell(MOVED)
    for webhook_ in (None, "env:TEAM", server.address):
        with telling(NotifySettings(webhook=webhook_)):
            tell(MOVED)
    assert len(server.told) == 4
    assert SECRET_PATH not in repr(NotifySettings(webhook=server.address))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("env:", "names no variable"), ("env:A B", "names no variable"),
        ("ftp://host/not-seen", "no address"), ("not-seen", "no address"),
        ("https:///not-seen", "no address"), ("https://host:99999/not-seen", "no address"),
        ("https://host/not-seen x", "no address"), ("https://host/not-seen\n", "no address"),
        (["https://host/not-seen"], "no address"), (5, "no address"),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_not_repeated(
    tmp_path: Path, value: object, words: str
) -> None:
    import yaml

    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"model": "m", "texts": {}, "notify": {"webhook": value}}))
    with pytest.raises(InvalidInput, match=words) as refused:
        load(CompressSettings, config)
    assert "not-seen" not in str(refused.value)


def test_a_variable_that_holds_no_address(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.delenv("TEAM", raising=False)
    with (
        pytest.raises(InvalidInput, match="TEAM is not set"),
        telling(NotifySettings(webhook="env:TEAM")),
    ):
        pass
    monkeypatch.setenv(VARIABLE, "not-seen")
    with (
        pytest.raises(InvalidInput, match=f"{VARIABLE} .* is no address") as refused,
        telling(NotifySettings()),
    ):
        pass
    tell(MOVED)  # where nobody checked it before
    assert len(said) == 1 and "not-seen" not in str(said) + str(refused.value)
