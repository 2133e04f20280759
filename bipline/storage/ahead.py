"""Work done ahead: a generator runs in a thread of its own, a few items before they are used.

Reading, hashing and matrix products release Python's lock, so one thread more is enough for the
disk to be busy while the processor is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


@contextmanager
def ahead(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Iterate over ``items``, of which up to ``depth`` finished ones wait to be used.

    What the generator raises is raised where its item would have come. Leaving the block stops
    the thread, so that nothing is read any more when the work has failed.
    """
    waiting: queue.Queue[object] = queue.Queue(maxsize=max(1, depth))
    left = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, waiting, left), daemon=True)
    thread.start()
    try:
        yield _drain(waiting)
    finally:
        left.set()
        while thread.is_alive():
            _empty(waiting)
            thread.join(0.01)


def _fill(items: Iterator[Item], waiting: queue.Queue[object], left: threading.Event) -> None:
    try:
        for item in items:
            waiting.put(item)
            if left.is_set():
                break
        waiting.put(_END)
    except BaseException as error:
        waiting.put(_Failure(error))
    finally:
        if isinstance(items, Generator):
            items.close()


def _drain(waiting: queue.Queue[object]) -> Iterator[Item]:
    while (item := waiting.get()) is not _END:
        if isinstance(item, _Failure):
            raise item.error
        yield item  # type: ignore[misc]


def _empty(waiting: queue.Queue[object]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        return


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
