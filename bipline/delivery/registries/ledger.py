"""A registry that is a place for files: it keeps its own books, and packages beside them.

``versions/00000001.json`` and so on are the versions, each put when its package lies there whole
and was hashed there again; ``promotions/`` is the journal, ``verdicts/`` what gates said. Every
number is written once, on the condition that nobody has it: what decides is that write alone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.base.progress import note
from bipline.delivery.evidence import Evidence, read_evidence
from bipline.delivery.registries.journal import check_alias, logged_in
from bipline.settings.compress import CANDIDATE
from bipline.storage.manifest import compare_names, read_manifest, relative_files, verify_directory
from bipline.storage.strict_json import parse_object
from bipline.values.promotion import JournalEntry, RegisteredPackage
from bipline.values.reading import typed
from bipline.values.verdict import Verdict

VERSIONS, PROMOTIONS = "versions", "promotions"
NUMBERED = re.compile(r"(\d{8,})\.json")
# More writers at once than a registered model ever has.
MOST_TRIES = 200
READERS = 8
Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class StoredVersion:
    """A registered version: see :class:`bipline.delivery.registries.interface.Version`."""

    number: str
    package_digest: str
    location: str
    evaluated_at: datetime | None


class LedgerRegistry(ABC):
    """One registered model. ``address`` is how a user would write where it lies."""

    name: str
    address: str

    @abstractmethod
    def check_ready(self) -> None:
        """Ask the place before any work whether it is there and may be written.

        Raises InvalidInput where it is not, EnvironmentFailure where it does not answer.
        """

    def check_alias(self, alias: str) -> None:
        """Raise InvalidInput for an alias that cannot be one here."""
        check_model_alias(alias)

    @abstractmethod
    def aliases(self) -> dict[str, str]:
        """Versions by alias, as they are now."""

    @abstractmethod
    def point(self, alias: str, version: str | None) -> None:
        """Set an alias, or remove it, if it is still what :meth:`aliases` found; else nothing."""

    @abstractmethod
    def _names(self, folder: str) -> list[str]:
        """Names of the files in a folder of the books."""

    @abstractmethod
    def _read(self, name: str) -> bytes | None:
        """A file of the books; None where there is none."""

    @abstractmethod
    def _write(self, name: str, text: str, new: bool) -> bool:
        """Write a file of the books; ``new``: False and nothing where one lies there already."""

    @abstractmethod
    def _store(self, package: Path) -> str:
        """Upload what is not there yet of a package; its location."""

    @abstractmethod
    def _file(self, location: str, name: str) -> bytes:
        """A small file of a package."""

    @abstractmethod
    def _check(self, location: str, package_digest: str) -> None:
        """Hash every stored file of a package. Raises Refused, or InvalidInput, for a change."""

    @abstractmethod
    def _fetch(self, location: str, folder: Path) -> None:
        """Copy a package into a new folder."""

    def put(self, package: Path, evaluated_at: datetime | None = None) -> StoredVersion:
        """Upload a package, hash it there again, and make it a version called candidate.

        A package that is a version already stays that version. Raises Refused where a byte differs.
        """
        manifest = read_manifest(package)
        # Links to what lies outside would be uploaded before they are compared.
        compare_names(str(package), relative_files(package), manifest)
        location = self._store(package)
        self._hash_again(location, manifest.digest)
        number = str(self._register(manifest.digest, location, evaluated_at))
        # Nobody is served by this alias, so the last one who writes has it.
        if self.aliases().get(CANDIDATE) != number:
            self.point(CANDIDATE, number)
        note(f"{self.name}: version {number} at {self.address}")
        return self.find(number)

    def _register(self, digest: str, location: str, evaluated_at: datetime | None) -> int:
        """The number of the version of a package, which it is given where it has none."""
        record = self._record(digest, location, evaluated_at)
        number = self._added(VERSIONS, record, self.versions, lambda v: v.package_digest == digest)
        if evaluated_at not in (None, self.versions()[number].evaluated_at):
            self._write(file_name(VERSIONS, number), record.to_json(), new=False)
        return number

    def _record(
        self, digest: str, location: str, evaluated_at: datetime | None
    ) -> RegisteredPackage:
        return RegisteredPackage(
            package_digest=digest, location=location, evaluated_at=evaluated_at,
            user=logged_in(), at=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip

    def versions(self) -> dict[int, RegisteredPackage]:
        """All versions by number."""
        return self._numbered(VERSIONS, RegisteredPackage)

    def entries(self) -> dict[int, JournalEntry]:
        """The whole journal by number."""
        return self._numbered(PROMOTIONS, JournalEntry)

    def append(self, entry: JournalEntry) -> int:
        """Put an entry under the first number that is free."""
        return self._added(PROMOTIONS, entry, self.entries, lambda each: each.id == entry.id)

    def check_known(self) -> None:
        """Raise InvalidInput where nothing was ever registered under the name."""
        if not (self.versions() or self.entries()):
            raise InvalidInput(f"the registry at {self.address} knows no model {self.name!r}")

    def find(self, wanted: str) -> StoredVersion:
        """A version by its number, or ``@ALIAS``. Raises InvalidInput where there is none."""
        number = self.aliases().get(wanted[1:]) if wanted.startswith("@") else wanted
        text = None
        if number and re.fullmatch(r"[1-9]\d{0,17}", number):
            text = self._read(file_name(VERSIONS, int(number)))
        if text is None or number is None:
            separator = "" if wanted.startswith("@") else "/"
            raise InvalidInput(
                f"{self.name}{separator}{wanted}: the registry at {self.address} has no such "
                "version"
            )
        record = self._typed(file_name(VERSIONS, int(number)), text, RegisteredPackage)
        return StoredVersion(number, record.package_digest, record.location, record.evaluated_at)

    def evidence(self, version: StoredVersion) -> Evidence:
        """What the package of a version tells; its weights are not fetched."""
        return read_evidence(
            lambda name: self._file(version.location, name),
            f"version {version.number} of {self.name}",
            version.package_digest,
            evaluated_at=version.evaluated_at,
        )

    def check(self, version: StoredVersion) -> str:
        """Hash every stored file of a version again; its digest. Raises Refused for a change."""
        self._hash_again(version.location, version.package_digest)
        return version.package_digest

    def keep(self, version: StoredVersion, verdict: Verdict) -> None:
        """Keep a verdict beside the versions, by its digest."""
        self._write(verdict.file_name, verdict.to_json(), new=False)

    def fetch(self, version: StoredVersion, folder: Path) -> Path:
        """The package of a version below a folder, every file of it hashed."""
        target = folder / version.package_digest[:32]
        self._fetch(version.location, target)
        found = verify_directory(target).digest
        if found != version.package_digest:
            raise Refused(
                f"{target}: holds package {found[:12]}, not {version.package_digest[:12]}"
            )
        return target

    def _hash_again(self, location: str, digest: str) -> None:
        try:
            self._check(location, digest)
        except (InvalidInput, Refused) as error:
            raise Refused(f"the registry's copy is damaged: {error}") from None

    def _added(
        self,
        folder: str,
        record: JournalEntry | RegisteredPackage,
        known: Callable[[], dict[int, Record]],
        is_same: Callable[[Record], bool],
    ) -> int:
        """Write a record under the first free number, unless it is there already; its number.

        The answer to an earlier try may have been lost on the way.
        """
        for _ in range(MOST_TRIES):
            there = known()
            if same := [number for number, each in there.items() if is_same(each)]:
                return min(same)
            number = max(there, default=0) + 1
            if self._write(file_name(folder, number), record.to_json(), new=True):
                return number
        raise EnvironmentFailure(f"{self.address}: {folder} is written by others all the time")

    def _numbered(self, folder: str, kind: type[Record]) -> dict[int, Record]:
        """Records by number.

        A listing may be late, so what it leaves out is asked for by name.
        """
        matches = [NUMBERED.fullmatch(name) for name in self._names(folder)]
        last = max((int(match[1]) for match in matches if match), default=0)
        with ThreadPoolExecutor(READERS) as pool:
            names = [file_name(folder, number) for number in range(1, last + 1)]
            texts = list(pool.map(self._read, names))
        while (text := self._read(file_name(folder, len(texts) + 1))) is not None:
            texts.append(text)
        return {
            number: self._typed(file_name(folder, number), text, kind)
            for number, text in enumerate(texts, start=1) if text is not None
        }  # fmt: skip

    def _typed(self, name: str, text: bytes, kind: type[Record]) -> Record:
        where = f"{self.address}/{self.name}/{name}"
        what = "journal entry" if kind is JournalEntry else "version"
        return typed(parse_object(text, where, what, ""), kind, where, what)


def file_name(folder: str, number: int) -> str:
    """Where a record of the books lies."""
    return f"{folder}/{number:08}.json"


def check_model_alias(alias: str) -> None:
    """As :func:`check_alias`, and what cannot be a name in a bucket, of a branch, or in a tag."""
    check_alias(alias)
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,99}", alias, re.ASCII):
        raise InvalidInput(f"alias {alias!r}: write up to 100 letters, digits, - and _")
