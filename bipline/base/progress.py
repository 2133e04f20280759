"""Progress: stages say what they do, the face decides how it is shown.

The core calls :func:`track` and :func:`note`; they are silent unless a listener is installed.
Only the command line installs one, so a step in a pod and a test stay quiet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from bipline.base.addresses import without_secrets

Item = TypeVar("Item")


class Listener(Protocol):
    """What a display implements: stages, the tasks in them, and notes of one line."""

    def begin(self, description: str, total: int | None) -> None:
        """A task begins; ``total`` is None when its length is not known."""

    def advance(self) -> None:
        """One item of the latest task is done."""

    def end(self) -> None:
        """The latest task is over."""

    def heading(self, text: str) -> None:
        """A stage begins."""

    def note(self, text: str) -> None:
        """One line the user should see."""


# A plain module variable, not a context variable: a step may run in a thread of its own.
_listener: Listener | None = None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send progress to ``listener`` for the length of the block."""
    global _listener
    previous, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = previous


@contextmanager
def silently() -> Iterator[None]:
    """Tell nobody for the length of the block: the passes of a search that shows its own steps."""
    global _listener
    previous, _listener = _listener, None
    try:
        yield
    finally:
        _listener = previous


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate, telling the listener after each item that it is done."""
    listener = _listener
    if listener is None:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    listener.begin(description, total)
    try:
        for item in items:
            yield item
            listener.advance()
    finally:
        # A loop left by an error may be closed late, when nobody listens any more.
        if listener is _listener:
            listener.end()


@contextmanager
def ticking(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A function that tells the listener, from whatever thread, that one more item is done."""
    listener = _listener
    if listener is None:
        yield lambda: None
        return
    listener.begin(description, total)
    try:
        yield listener.advance
    finally:
        if listener is _listener:
            listener.end()


def heading(text: str) -> None:
    """A stage begins: what follows belongs to it."""
    if _listener is not None:
        _listener.heading(without_secrets(text))


def note(text: str) -> None:
    """One line the user should see: a fallback taken, a choice made."""
    if _listener is not None:
        _listener.note(without_secrets(text))
