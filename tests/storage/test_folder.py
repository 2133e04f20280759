"""A local file read by ranges: the same bytes through the page cache and around it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput, Refused
from bipline.storage import folder
from bipline.storage.folder import BLOCK_BYTES, DIRECT, SMALL_BYTES, LocalFile, LocalFolder

# It ends inside a block, as nearly every file does.
CONTENT = Random(0).randbytes((3 << 20) + 1234)
# Far less than the longest reads, which so take several turns.
STAGING_BYTES = 256 << 10

Span = tuple[int, int]


@st.composite
def spans(draw: st.DrawFn, shortest: int) -> Span:
    """Where to begin and how much to read; beginnings and ends fall on and beside blocks."""
    places = st.integers(0, len(CONTENT)) | st.builds(
        lambda block, beside: min(max(0, block * BLOCK_BYTES + beside), len(CONTENT)),
        st.integers(0, len(CONTENT) // BLOCK_BYTES + 1),
        st.integers(-1, 1),
    )
    begin = min(draw(places), len(CONTENT) - shortest)
    return begin, max(draw(places) - begin, shortest)


def opened(path: Path, around_the_cache: bool) -> LocalFile:
    file = LocalFile(path)
    if around_the_cache:
        with mock.patch.object(folder, "STAGING_BYTES", STAGING_BYTES):
            file.avoid_cache()
    return file


def refuse_direct(path: str, flags: int, *rest: int, really: object = os.open) -> int:
    """``os.open`` of a file system that knows no direct input and output."""
    if flags & DIRECT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return really(path, flags, *rest)  # type: ignore[operator]


@contextmanager
def watching_reads() -> Iterator[list[tuple[bool, int, int]]]:
    """What the kernel is asked for: whether around the cache, from where, how much."""
    seen: list[tuple[bool, int, int]] = []
    really = os.preadv

    def watched(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT)
        seen.append((direct, offset, len(buffers[0])))
        return really(descriptor, buffers, offset)

    with mock.patch.object(os, "preadv", watched):
        yield seen


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["cached", "direct"])
def file(request: pytest.FixtureRequest, path: Path) -> LocalFile:
    return opened(path, request.param)


def assert_reads(file: LocalFile, span: Span, content: bytes = CONTENT) -> None:
    """The range is the file's, at an odd place in memory, and its neighbours are left alone."""
    begin, length = span
    around = bytearray(b"<" + bytes(length) + b">")
    file.read_into(memoryview(around)[1:-1], begin)
    assert around == b"<" + content[begin : begin + length] + b">"


@settings(deadline=None, max_examples=60)
@given(span=spans(0) | spans(SMALL_BYTES))
def test_a_range_is_the_files_bytes(file: LocalFile, span: Span) -> None:
    assert_reads(file, span)


@pytest.mark.parametrize("span", [(0, len(CONTENT)), (1, len(CONTENT) - 1), (len(CONTENT), 0)])
def test_a_whole_file_and_nothing_at_its_end(file: LocalFile, span: Span) -> None:
    assert_reads(file, span)


@settings(deadline=None, max_examples=60)
@given(span=spans(SMALL_BYTES))
def test_long_ranges_are_read_around_the_cache(path: Path, span: Span) -> None:
    """Without this the test above would hold for a file that ignores ``avoid_cache``."""
    try:
        os.close(os.open(path, os.O_RDONLY | DIRECT))
    except OSError:
        pytest.skip("this file system knows no direct reading")
    direct_file = opened(path, True)
    with watching_reads() as seen:
        assert_reads(direct_file, span)
    direct = [(offset, length) for is_direct, offset, length in seen if is_direct]
    cached = [length for is_direct, _, length in seen if not is_direct]
    assert direct
    assert all(not number % BLOCK_BYTES for read in direct for number in read)
    assert all(length < SMALL_BYTES for length in cached), "only what is left at the end"


def test_without_direct_reading_the_bytes_are_the_same(path: Path) -> None:
    with mock.patch.object(os, "open", refuse_direct):
        file = opened(path, True)
    assert file.skips_well, "it is still read through the page cache"
    with watching_reads() as seen:
        assert_reads(file, (3, len(CONTENT) - 3))
    assert not any(direct for direct, _, _ in seen)


@pytest.mark.parametrize("left", [0, 1, BLOCK_BYTES, 2 * SMALL_BYTES, 5 * SMALL_BYTES + 7])
@pytest.mark.parametrize("around_the_cache", [False, True])
def test_a_file_that_becomes_shorter_is_refused(
    tmp_path: Path, around_the_cache: bool, left: int
) -> None:
    path, content = tmp_path / "file", CONTENT[: 8 * SMALL_BYTES]
    path.write_bytes(content)
    file = opened(path, around_the_cache)
    os.truncate(path, left)
    for begin in (0, 1, left, left + 1, 7 * SMALL_BYTES - 1):
        with pytest.raises(Refused, match="file: became shorter while it was read"):
            file.read_into(memoryview(bytearray(len(content) - begin)), begin)
    assert_reads(file, (0, left), content)


@pytest.mark.parametrize("around_the_cache", [False, True])
def test_a_file_renamed_over_it_changes_nothing(tmp_path: Path, around_the_cache: bool) -> None:
    """The header was read from one file: its tensors must not come from another."""
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(CONTENT)
    other.write_bytes(bytes(len(CONTENT)))
    file = LocalFile(path)
    other.rename(path)
    if around_the_cache:
        file.avoid_cache()
    assert_reads(file, (0, len(CONTENT)))


def test_the_state_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    file = LocalFile(path)
    before = file.state
    assert file.state == before
    with path.open("ab") as appended:
        appended.write(b" and after")
    assert file.state != before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    place = LocalFolder(tmp_path)
    for look in (place.read, place.open):
        with pytest.raises(InvalidInput, match=r"gone\.bin: no such file"):
            look("gone.bin")


def test_a_folder_holds_its_files_alone(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "below").mkdir()
    place = LocalFolder(tmp_path)
    assert place.exists()
    assert place.names() == ["a", "b"]
    assert place.read("b") == b"b"
    assert not LocalFolder(tmp_path / "gone").exists()
