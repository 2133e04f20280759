"""Work done ahead: the same items and errors as without the thread, and no thread afterwards."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.storage.ahead import ahead

DEPTHS = [1, 2, 5]
PATIENCE_SECONDS = 10.0


class Source:
    """A generator that says how far it came and whether it was closed."""

    def __init__(self, failing_at: int | None = None) -> None:
        self.made = 0
        self.error = RuntimeError("cannot be read")
        self.closed = threading.Event()
        self.failing_at = failing_at

    def items(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                if number == self.failing_at:
                    raise self.error
                self.made += 1
                yield number
        finally:
            self.closed.set()

    def wait_for(self, made: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.made < made:
            assert time.monotonic() < deadline, f"{self.made} of {made} items were made"
            time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@settings(deadline=None, max_examples=60)
@given(items=st.lists(st.integers() | st.none(), max_size=40), depth=st.integers(-1, 50))
def test_items_come_in_order_and_all(items: list[int | None], depth: int) -> None:
    with ahead(iter(items), depth) as coming:
        assert list(coming) == items
        assert next(coming, "end") == "end"


@settings(deadline=None, max_examples=40)
@given(place=st.integers(0, 20), depth=st.integers(1, 8))
def test_an_error_comes_where_its_item_would_have_come(place: int, depth: int) -> None:
    source, seen = Source(failing_at=place), []
    with (
        pytest.raises(RuntimeError) as caught,
        ahead(source.items(), depth) as coming,
    ):
        for item in coming:
            seen.append(item)  # noqa: PERF402
    assert seen == list(range(place))
    assert caught.value is source.error


@pytest.mark.parametrize("depth", DEPTHS)
def test_items_are_made_ahead_but_not_too_many(depth: int) -> None:
    """``depth`` items wait, and one more is in the hands of the thread; memory depends on it."""
    source = Source()
    with ahead(source.items(), depth) as coming:
        for used in range(4):
            source.wait_for(used + depth + 1)
            time.sleep(0.02)
            assert source.made == used + depth + 1
            assert next(coming) == used


@pytest.mark.parametrize("used", [0, 1, 3])
@pytest.mark.parametrize("depth", DEPTHS)
def test_leaving_early_stops_the_generator(depth: int, used: int) -> None:
    source = Source()
    with ahead(source.items(), depth) as coming:
        assert list(itertools.islice(coming, used)) == list(range(used))
        source.wait_for(used + depth + 1)
    assert source.closed.is_set()
    made = source.made
    time.sleep(0.02)
    assert source.made == made


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_of_the_user_stops_the_generator_and_is_raised(depth: int) -> None:
    source = Source()
    with pytest.raises(ValueError, match="disk full"), ahead(source.items(), depth) as coming:
        next(coming)
        raise ValueError("disk full")
    assert source.closed.is_set()


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_that_nobody_waits_for_holds_nobody_up(depth: int) -> None:
    """The generator fails while its earlier items wait and the block is left."""
    source = Source(failing_at=depth)
    with ahead(source.items(), depth):
        source.wait_for(depth)
    assert source.closed.is_set()


def test_the_generator_runs_and_is_closed_in_one_other_thread() -> None:
    """What it opens, it closes itself: a generator of a generator may hold a thread, too."""
    threads: list[threading.Thread] = []

    def items() -> Iterator[int]:
        threads.append(threading.current_thread())
        try:
            yield from range(100)
        finally:
            threads.append(threading.current_thread())

    with ahead(items(), 2) as coming:
        next(coming)
    assert len(threads) == 2
    assert threads[0] is threads[1] is not threading.current_thread()


def test_one_inside_the_other() -> None:
    """Pruning writes ahead of what slices ahead of what reads: leaving the last ends them all."""
    source = Source()

    def doubled() -> Iterator[int]:
        with ahead(source.items(), 2) as inner:
            for item in inner:
                yield 2 * item

    with ahead(doubled(), 2) as coming:
        assert list(itertools.islice(coming, 5)) == [0, 2, 4, 6, 8]
    assert source.closed.is_set()
