"""Unfinished work of an S3 store: a directory of this machine whose records are mirrored to S3.

A thread copies files that are whole to ``PREFIX/work/STAGE/KEY/``, in the order in which they were
written, and removes there what is gone here. A killed run's next holder, on any machine, fetches
them first. Records name the digests of what they refer to, so a mirror that is behind, even in the
middle of a copy, costs the blocks since and nothing else.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bipline.base.errors import BiplineError
from bipline.base.progress import note
from bipline.storage.locks import locked
from bipline.storage.s3 import S3File
from bipline.storage.s3_client import S3Place
from bipline.storage.s3_lease import Lease
from bipline.storage.s3_transfer import download, entry_of, upload
from bipline.storage.work import MARKER_NAME, work_directory

MIRROR_SECONDS = 5.0
PARTIAL = ".partial"
# A file system tells the time of a change by a clock that ticks this coarsely.
TICK_NANOSECONDS = 50_000_000
State = tuple[int, int]


@contextmanager
def mirrored_work(
    place: S3Place, name: str, local: Path, lease_seconds: float, mirror_seconds: float
) -> Iterator[Path]:
    """Hold the work ``name`` below ``place`` for the length of the block, in ``local``.

    The block's failure leaves local records and mirror as :func:`work_directory` does.
    Raises InvalidInput when another process holds it, here or elsewhere.
    """
    last = local.with_name(f"{local.name}.holder")
    last.parent.mkdir(parents=True, exist_ok=True)
    last.touch()
    lease = Lease(place, f"{name}.lock", lease_seconds)
    mirror = Mirror(place.below(name), local, lease, mirror_seconds)
    with locked(last, f"{local}: another process is working on this output"):
        previous = last.read_text(encoding="utf-8")
        before = lease.take(previous)
        try:
            with lease.renewing():
                if before and before != previous:
                    mirror.fetch()
                # In place: a file renamed over it would carry no lock.
                last.write_text(lease.holder, encoding="utf-8")
                with work_directory(local) as work, mirror.running():
                    yield work
        finally:
            # What S3 does not take now is taken up by the next holder, or overwritten.
            with suppress(BiplineError):
                _leave(mirror, lease, last)


def _leave(mirror: Mirror, lease: Lease, last: Path) -> None:
    if mirror.local.exists():
        lease.release()
        return
    if lease.held:
        mirror.remove()
    lease.remove()
    last.unlink()


class Mirror:
    """The copy in S3 of a work directory, as long as the lease is held."""

    def __init__(self, place: S3Place, local: Path, lease: Lease, seconds: float) -> None:
        self.local = local
        self._place, self._lease, self._seconds = place, lease, seconds
        self._snapshot = local.with_name(f"{local.name}.mirror")
        self._sent: dict[str, State] = {}
        self._ended = threading.Event()
        self._complained = False

    def fetch(self) -> None:
        """Replace what lies here by the copy; a file that does not match its sha256 is left out."""
        shutil.rmtree(self.local, ignore_errors=True)
        self.local.mkdir(parents=True)
        (self.local / MARKER_NAME).touch()
        for name in self._place.listed():
            file, path = S3File(self._place, name), self.local / name
            if download(file, path).sha256 == file.sha256:
                self._sent[name] = _state(path)
            else:
                path.unlink()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Copy in a thread for the length of the block; after a failure, what is left too."""
        thread = threading.Thread(target=self._copy_until_ended, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._end(thread)
            self._ended.clear()
            self._copy(everything=True)
            raise
        finally:
            self._end(thread)

    def remove(self) -> None:
        """Remove the copy: the work is done, or cannot be done."""
        self._place.remove(self._place.listed())

    def _end(self, thread: threading.Thread) -> None:
        self._ended.set()
        thread.join()

    def _copy_until_ended(self) -> None:
        while not self._ended.wait(self._seconds):
            self._copy()

    def _copy(self, everything: bool = False) -> None:
        """One round; work goes on where S3 does not take it, and the next round tries again."""
        try:
            self._copy_changes(everything)
        except (BiplineError, OSError) as error:
            if not self._complained:
                note(f"work is not copied to S3 for now: {error}")
            self._complained = True
        finally:
            shutil.rmtree(self._snapshot, ignore_errors=True)

    def _copy_changes(self, everything: bool) -> None:
        """Upload what changed before this round began, oldest first, then remove what is gone.

        The round works on links, so that the run may replace and remove files meanwhile.
        """
        end = time.time_ns() - TICK_NANOSECONDS
        if not self._lease.held:
            return
        present = self._whole_files()
        changed = [
            name for name, (time_ns, _) in present.items()
            if present[name] != self._sent.get(name) and (everything or time_ns < end)
        ]  # fmt: skip
        # A record is written after what it names: last among files of the same tick.
        changed.sort(key=lambda name: (present[name][0], name.endswith(".json")))
        for name, link in self._links(changed).items():
            if self._ended.is_set() or not self._lease.held:
                return
            upload(self._place, name, link, entry_of(link))
            self._sent[name] = _state(link)
        gone = set(self._sent) - set(present)
        self._place.remove(gone)
        self._sent = {name: state for name, state in self._sent.items() if name not in gone}

    def _whole_files(self) -> dict[str, State]:
        """Every file that is not being written, with the time and size that tell its versions."""
        found = {}
        for path in self.local.rglob("*"):
            with suppress(FileNotFoundError):  # removed since it was listed
                if path.is_file() and not path.name.endswith(PARTIAL):
                    found[path.relative_to(self.local).as_posix()] = _state(path)
        return found

    def _links(self, names: list[str]) -> dict[str, Path]:
        """Hard links to files as they are now, in order."""
        self._snapshot.mkdir(exist_ok=True)
        links = {}
        for number, name in enumerate(names):
            links[name] = self._snapshot / str(number)
            os.link(self.local / name, links[name])
        return links


def _state(path: Path) -> State:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
