"""A file written around the page cache: its bytes, its digest, and the disk's errors."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.storage import synced_file
from bipline.storage.folder import BLOCK_BYTES, DIRECT
from bipline.storage.synced_file import SyncedFile

# Small, so that many buffers take turns in a short test.
BUFFER_BYTES = 4 * BLOCK_BYTES


@pytest.fixture(autouse=True, scope="module")
def small_buffers() -> Iterator[None]:
    with mock.patch.object(synced_file, "BUFFER_BYTES", BUFFER_BYTES):
        yield


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """Pieces whose lengths, and sums of lengths, lie on and beside blocks and buffers."""
    beside = st.builds(
        lambda unit, count, shift: max(0, unit * count + shift),
        st.sampled_from([BLOCK_BYTES, BUFFER_BYTES]),
        st.integers(0, 3),
        st.integers(-1, 1),
    )
    lengths = draw(st.lists(beside | st.integers(0, 3 * BUFFER_BYTES), max_size=6))
    random = Random(len(lengths))
    return [random.randbytes(length) for length in lengths]


def write(path: Path, given: list[bytes]) -> SyncedFile:
    with SyncedFile(path) as file:
        for piece in given:
            file.write(memoryview(piece))
    return file


def assert_holds(path: Path, file: SyncedFile, content: bytes) -> None:
    assert path.read_bytes() == content
    assert file.size == len(content)
    assert file.sha256 == hashlib.sha256(content).hexdigest()


@contextmanager
def no_direct_writing() -> Iterator[list[str]]:
    """A file system that refuses O_DIRECT, and the paths it refused it for."""
    refused: list[str] = []
    really = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if flags & DIRECT:
            refused.append(str(path))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return really(path, flags, *rest)

    with mock.patch.object(os, "open", refusing):
        yield refused


def failing_after(successes: int, really: Callable[..., int]) -> Callable[..., int]:
    """A call to the disk that finds no room after it succeeded some times."""
    left = iter(range(successes))

    def call(*arguments: object) -> int:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(*arguments)

    return call


def assert_let_go(path: Path) -> None:
    """No descriptor of the file and no thread that writes is left."""
    descriptors = Path("/proc/self/fd").iterdir()
    assert str(path) not in {os.path.realpath(each) for each in descriptors}
    assert not [each for each in threading.enumerate() if each.name.startswith("write-behind")]


@settings(deadline=None, max_examples=60)
@given(given_pieces=pieces())
def test_what_is_written_is_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, given_pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("synced") / "file"
    assert_holds(path, write(path, given_pieces), b"".join(given_pieces))


@settings(deadline=None, max_examples=30)
@given(given_pieces=pieces())
def test_without_direct_writing_the_bytes_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, given_pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("synced") / "file"
    with no_direct_writing() as refused:
        file = write(path, given_pieces)
    assert refused == ([str(path)] if DIRECT else [])
    assert_holds(path, file, b"".join(given_pieces))


def test_whole_blocks_are_written_around_the_cache(tmp_path: Path) -> None:
    """Without this all tests here would hold for a file that never asks for direct writing."""
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | DIRECT))
    except OSError:
        pytest.skip("this file system knows no direct writing")
    seen: list[tuple[bool, int]] = []
    really = os.write

    def watched(descriptor: int, data: memoryview) -> int:
        seen.append((bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT), len(data)))
        return really(descriptor, data)

    with mock.patch.object(os, "write", watched):
        write(tmp_path / "file", [bytes(2 * BUFFER_BYTES + BLOCK_BYTES + 5)])
    assert seen == [(True, BUFFER_BYTES), (True, BUFFER_BYTES), (True, BLOCK_BYTES), (False, 5)]


def test_an_older_and_longer_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5 * BUFFER_BYTES))
    assert_holds(path, write(path, [b"short"]), b"short")


def test_an_error_to_open_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SyncedFile(tmp_path / "gone" / "file")


@pytest.mark.parametrize(
    ("length", "successes"),
    [
        (5, 0),
        (BLOCK_BYTES, 0),
        (BLOCK_BYTES + 5, 0),
        (BLOCK_BYTES + 5, 1),
        (BUFFER_BYTES, 0),
        *((4 * BUFFER_BYTES + 5, successes) for successes in range(5)),
    ],
)
def test_a_full_disk_is_told_on_leaving_at_the_latest(
    tmp_path: Path, length: int, successes: int
) -> None:
    """Whichever write finds no room: of a buffer, of the last blocks, of what is left."""
    content = bytes(length)
    with (
        mock.patch.object(os, "write", failing_after(successes, os.write)),
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        write(tmp_path / "file", [content[:3], content[3:]])
    assert_let_go(tmp_path / "file")


def test_a_write_that_fails_stops_the_writing(tmp_path: Path) -> None:
    """A model's worth of buffers is not sent to a disk that is full."""
    file = SyncedFile(tmp_path / "file")
    written = 0
    with (
        mock.patch.object(os, "write", failing_after(0, os.write)),
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
        file,
    ):
        for _ in range(10):
            file.write(bytes(BUFFER_BYTES))
            written += 1
    assert written < 2, "the buffer that failed and the one filled meanwhile"


@pytest.mark.parametrize("length", [0, 5, BUFFER_BYTES])
def test_a_flush_that_fails_is_told(tmp_path: Path, length: int) -> None:
    with (
        mock.patch.object(os, "fsync", failing_after(0, os.fsync)),
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        write(tmp_path / "file", [bytes(length)])
    assert_let_go(tmp_path / "file")


def test_another_error_is_not_covered_by_one_of_the_disk(tmp_path: Path) -> None:
    """What went wrong first is what the user must see; the file is closed all the same."""
    with (
        mock.patch.object(os, "write", failing_after(0, os.write)),
        pytest.raises(ValueError, match="the shape"),
        SyncedFile(tmp_path / "file") as file,
    ):
        file.write(bytes(BUFFER_BYTES))
        raise ValueError("the shape")
    assert_let_go(tmp_path / "file")
