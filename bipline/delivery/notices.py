"""Notices to a webhook: sent with patience for seconds, and never the reason that anything fails.

Whoever starts work opens a channel (:func:`telling`); whatever happens inside says so by
:func:`tell`. Where nobody opened one, as in a pod, the environment's webhook is meant.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from bipline.base.addresses import without_secrets
from bipline.base.errors import BiplineError, InvalidInput
from bipline.base.printable import printable
from bipline.base.progress import note
from bipline.settings.notify import NotifySettings
from bipline.values.notice import Notice

# Without a byte, and for a whole try: a server may send one now and then.
TIMEOUT_SECONDS, DEADLINE_SECONDS = 5.0, 10.0
# Seconds before each further try.
WAITS = (1.0, 2.0)
LONGEST_REASON = 1000
# Answers after which another try may help, beside those of a server that failed.
PASSING = {408, 425, 429}


class _Stay(HTTPRedirectHandler):
    """A webhook that sends elsewhere is not followed: the notice was meant for it alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class _Failed:
    """Why a notice was not taken, without the address, and whether that may pass."""

    reason: str
    passing: bool


@dataclass(frozen=True)
class Channel:
    """A webhook, and what it is told."""

    address: str
    events: frozenset[str]

    @classmethod
    def of(cls, settings: NotifySettings) -> Channel | None:
        """The channel that settings mean, or None. Raises as :meth:`NotifySettings.address`."""
        address = settings.address()
        return None if address is None else cls(address, frozenset(settings.on))

    def __str__(self) -> str:
        """Where it leads, as far as that is no secret: scheme and host."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.hostname}"

    def send(self, notice: Notice) -> None:
        """Post a notice. What fails is said; it never raises."""
        if notice.event not in self.events:
            return
        body = json.dumps(notice.payload()).encode()
        failed = self._try(body)
        for wait in WAITS:
            if failed is None or not failed.passing:
                break
            time.sleep(wait)
            failed = self._try(body)
        if failed is not None:
            what = f"the webhook at {self} did not take the notice of a {notice.event}"
            note(f"{what}: {failed.reason}")

    def _try(self, body: bytes) -> _Failed | None:
        """One try, given up after a while: a name or an answer that never comes must not hang."""
        ended: list[_Failed | None] = []
        thread = Thread(target=lambda: ended.append(self._post(body)), daemon=True)
        thread.start()
        thread.join(DEADLINE_SECONDS)
        return ended[0] if ended else _Failed("it does not end its answer", False)

    def _post(self, body: bytes) -> _Failed | None:
        """None where it was taken."""
        headers = {"Content-Type": "application/json", "User-Agent": "bipline"}
        request = Request(self.address, body, headers)  # noqa: S310 - checked to be http
        try:
            with build_opener(_Stay).open(request, timeout=TIMEOUT_SECONDS):
                return None
        except HTTPError as error:
            return _Failed(f"it answers {error.code}", error.code >= 500 or error.code in PASSING)
        except (OSError, HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            known = isinstance(cause, OSError) and cause.strerror
            return _Failed(str(known or type(cause).__name__), True)


@dataclass
class _Telling:
    """An open channel, None where nobody listens, and what its notices are about."""

    channel: Channel | None
    about: dict[str, str]


# A plain module variable, as for progress: a step may run in a thread of its own.
_open: _Telling | None = None


@contextmanager
def telling(settings: NotifySettings) -> Iterator[None]:
    """Send what is told in the block to where settings say. Raises InvalidInput for no address."""
    global _open
    before, _open = _open, _Telling(Channel.of(settings), {})
    try:
        yield
    finally:
        _open = before


def is_telling() -> bool:
    """Whether somebody opened a channel, and so hears of a failure from whoever did."""
    return _open is not None


def about(**fields: str) -> None:
    """What notices of the open channel are about from here on, such as the run."""
    if _open is not None:
        _open.about.update(fields)


def tell(notice: Notice) -> None:
    """Tell of an event. Never raises: what is told has happened already."""
    whole = completed(notice)
    try:
        channel = Channel.of(NotifySettings()) if _open is None else _open.channel
    except InvalidInput as error:
        note(str(error))
        return
    if channel is not None:
        channel.send(whole)


def completed(notice: Notice) -> Notice:
    """A notice with time, host and what it is about, and without a secret of the environment."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {"at": now, "host": platform.node(), **(_open.about if _open else {})}
    told = {name: value for name, value in notice.model_dump().items() if value not in (None, "")}
    texts = {k: clean(v) if isinstance(v, str) else v for k, v in {**known, **told}.items()}
    return Notice(**texts)


def clean(text: str) -> str:
    """A line that may leave this machine."""
    return printable(without_secrets(text))[:LONGEST_REASON]


@contextmanager
def failures_told(pipeline: str, source: str | None = None) -> Iterator[None]:
    """Tell of whatever ends the block badly; what somebody stopped is no failure."""
    try:
        yield
    except Exception as error:
        tell(failure(error, pipeline, source))
        raise


def failure(
    error: BaseException, pipeline: str, source: str | None = None, **fields: str
) -> Notice:
    """The notice of an error, with the exit code that a command ends with."""
    code = error.exit_code if isinstance(error, BiplineError) else 1
    reason = " ".join(str(error).split()) or type(error).__name__
    return Notice(
        event="failure", pipeline=pipeline, source=source, exit_code=code, reason=reason, **fields
    )
