"""What became of each release: records that are only added, and holds that end with a process.

Record N of a release is made on the condition that there is none of that number, so whoever adds
one knows all that was said before it. A hold is the right to work on a release: it is gone when the
process that has it is gone, and the next watcher goes on from the last record.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from bipline.base.errors import InvalidInput
from bipline.storage.digests import digest_json
from bipline.storage.directory import environment_failure
from bipline.storage.strict_json import parse_object
from bipline.values.reading import typed
from bipline.values.release import Release, WatchBegin, WatchRecord

RELEASES, PLACES, HOLDS, SUFFIX = "releases", "places", "holds", ".json"
DIGITS = 4
RECORD = re.compile(rf"{RELEASES}/(?P<key>[0-9a-f]{{64}})/(?P<number>[0-9]+){re.escape(SUFFIX)}")
REMEDY = "somebody changed the journal; put it back from a copy"


class Hold(Protocol):
    """The right to work on a release, until it is released or its process ends."""

    @property
    def held(self) -> bool:
        """Whether nobody else can have it by now."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Open files by which a child keeps the hold, should this process end before it."""

    def release(self) -> None:
        """Let the next one in."""


class Records(Protocol):
    """Where a journal lies: texts by name, each written once, and holds."""

    @property
    def location(self) -> str:
        """As the user would write it."""

    def names(self) -> list[str]:
        """Names of all records, in no order."""

    def read(self, name: str) -> bytes | None:
        """A record whole, or None where there is none."""

    def create(self, name: str, text: str) -> bool:
        """Write a record whole; False where there is one of this name."""

    def hold(self, name: str) -> Hold | None:
        """Take a hold, or None while another has it."""


@dataclass(frozen=True)
class Standing:
    """Where a release stands: its records in order, the first of which tells the release."""

    records: tuple[WatchRecord, ...]

    @property
    def last(self) -> WatchRecord:
        """The record that says where it stands."""
        return self.records[-1]

    @cached_property
    def release(self) -> Release:
        """The release itself."""
        found = self.records[0].release
        if found is None:
            raise InvalidInput(f"the first record of a release tells none; {REMEDY}")
        return found


class Journal:
    """The records of all releases, at a place."""

    def __init__(self, place: Records) -> None:
        self.place = place
        # A record never changes, so each is read once.
        self._read: dict[str, WatchRecord] = {}

    def standings(self) -> dict[str, Standing]:
        """Where every release stands by a listing, which may be late, by its key.

        Raises InvalidInput for a release that has lost a record.
        """
        numbers: dict[str, list[int]] = defaultdict(list)
        for name in self.place.names():
            if (found := RECORD.fullmatch(name)) is None:
                raise InvalidInput(f"{self.place.location}/{name}: is no record; {REMEDY}")
            numbers[found["key"]].append(int(found["number"]))
        return {key: self._standing(key, sorted(each)) for key, each in numbers.items()}

    def standing(self, key: str) -> Standing | None:
        """Where a release stands now, or None for one that was never seen.

        Records are asked for one after the other, as a listing may be late.
        """
        records: list[WatchRecord] = []
        while (record := self._record(_record_name(key, len(records) + 1))) is not None:
            records.append(record)
        return Standing(tuple(records)) if records else None

    def _standing(self, key: str, numbers: list[int]) -> Standing:
        records = [self._record(_record_name(key, number)) for number in numbers]
        whole = tuple(record for record in records if record is not None)
        if whole and whole[0].release is not None and whole[0].release.key != key:
            raise InvalidInput(f"{self.place.location}/{RELEASES}/{key}: another's; {REMEDY}")
        if numbers == list(range(1, len(whole) + 1)):
            return Standing(whole)
        # A listing may leave some out; one that is not there when it is asked for was removed.
        found = self.standing(key)
        if found is None or len(found.records) < max(numbers):
            where = f"{self.place.location}/{RELEASES}/{key}"
            raise InvalidInput(f"{where}: a record before the last is missing; {REMEDY}")
        return found

    def append(self, key: str, before: Standing | None, record: WatchRecord) -> Standing | None:
        """Add the record that follows a standing; None where another one came first."""
        number = len(before.records) + 1 if before else 1
        if not self.place.create(_record_name(key, number), record.to_json()):
            return None
        return Standing((*(before.records if before else ()), record))

    def begin(self, place: str) -> WatchBegin | None:
        """What lay in a place at the first look, or None before it."""
        name = _begin_name(place)
        content = self.place.read(name)
        if content is None:
            return None
        where = f"{self.place.location}/{name}"
        return typed(parse_object(content, where, "watch's begin"), WatchBegin, where, "begin")

    def begun(self, begin: WatchBegin) -> WatchBegin:
        """Keep a first look; where another watcher had one before, that one counts."""
        if self.place.create(_begin_name(begin.place), begin.to_json()):
            return begin
        return self.begin(begin.place) or begin

    def hold(self, key: str) -> Hold | None:
        """The right to work on a release, or None while another has it."""
        return self.place.hold(key)

    def _record(self, name: str) -> WatchRecord | None:
        if name not in self._read:
            content = self.place.read(name)
            if content is None:
                return None
            where = f"{self.place.location}/{name}"
            value = parse_object(content, where, "record of a watch", REMEDY)
            self._read[name] = typed(value, WatchRecord, where, "record of a watch", REMEDY)
        return self._read[name]


class LocalRecords:
    """A journal in a folder of this machine, or one that several machines mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._holds = LocalHolds(folder / HOLDS)

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.folder)

    def names(self) -> list[str]:
        """Names of all records."""
        found = (self.folder / RELEASES).glob(f"*/[0-9]*{SUFFIX}")
        return [path.relative_to(self.folder).as_posix() for path in found]

    def read(self, name: str) -> bytes | None:
        """A record whole, or None where there is none."""
        with suppress(FileNotFoundError):
            return (self.folder / name).read_bytes()
        return None

    def create(self, name: str, text: str) -> bool:
        """Write a record under another name, flush it, and give it its own if that is free.

        Raises EnvironmentFailure where the disk is full.
        """
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(temporary, text)
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise environment_failure(error) or error from None
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def hold(self, name: str) -> Hold | None:
        """Take the lock of a release, or None while another process has it."""
        return self._holds.take(name)


class LocalHolds:
    """Locks by name in a folder: each is gone with the last process that has its file open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, name: str) -> LocalHold | None:
        """Take a lock, or None while another process, or this one, has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._folder / name, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return LocalHold(descriptor)


class LocalHold:
    """A lock that is held."""

    def __init__(self, descriptor: int) -> None:
        self.descriptors: tuple[int, ...] = (descriptor,)

    @property
    def held(self) -> bool:
        """True: the system gives it to nobody else."""
        return True

    def release(self) -> None:
        """Close the file; a child that has it open keeps the lock."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = ()


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _record_name(key: str, number: int) -> str:
    return f"{RELEASES}/{key}/{number:0{DIGITS}}{SUFFIX}"


def _begin_name(place: str) -> str:
    return f"{PLACES}/{digest_json(place)}{SUFFIX}"
