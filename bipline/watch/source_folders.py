"""Releases as folders of files: below a directory of this machine, or below an ``s3://`` prefix.

A folder is released when its files were left alone for a while and are a whole model. On this
machine it is known by the digest of its files; in S3 by their names, sizes and ETags.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.base.progress import note, track
from bipline.model.opening import open_checkpoint
from bipline.model.side_files import is_model_file
from bipline.settings.watch import SourceSettings
from bipline.storage.digests import digest_file, digest_json, digest_listing
from bipline.storage.directory import write_text
from bipline.storage.folder import LocalFolder
from bipline.storage.s3 import S3Folder
from bipline.storage.strict_json import parse_object
from bipline.values.release import Release
from bipline.watch.sources import Description, release_key, told_time

CONFIG = "config.json"


class LocalSource:
    """Folders in a directory, each a model. Files are hashed once, until they change."""

    def __init__(
        self, name: str, settings: SourceSettings, folder: Path, state: Path | None
    ) -> None:
        self._name, self._settled = name, settings.settled
        self._known = KnownDigests(folder / "digests")
        self._directory = Path(settings.folder or "")
        self.places = (str(self._directory.absolute()),)

    def listed(self, place: str) -> list[Release]:
        """Every folder with a config.json that was left alone for long enough."""
        if not self._directory.is_dir():
            raise InvalidInput(f"{self._directory}: no such directory of models")
        models = [path for path in sorted(self._directory.iterdir()) if _is_model(path)]
        found = []
        for path in track(models, f"look at {place}"):
            try:
                if is_settled(_touched(path), self._settled):
                    found.append(self._release(place, path))
            except (InvalidInput, OSError) as error:  # the others count all the same
                note(f"{path}: left out: {error}")
        return found

    def described(self, release: Release) -> Description:
        """The model as it lies there, if it is still what was listed."""
        try:
            now = self._release(release.place, Path(release.model))
        except OSError as error:
            raise EnvironmentFailure(f"{release.model}: {error.strerror}") from None
        if now.key != release.key:
            raise EnvironmentFailure(f"{release.model}: changes while it is looked at")
        return Description.of(open_checkpoint(release.model))

    def is_still(self, release: Release) -> bool:
        """Whether its files, every one hashed again, are those that were listed.

        One that is gone is left to its run, which says so.
        """
        path = Path(release.model)
        note(f"{release.run}: its files are hashed before it starts")
        try:
            return digest_of(path, _own_files(path)) == release.revision
        except (InvalidInput, OSError):
            return True

    def _release(self, place: str, path: Path) -> Release:
        digest = self._known.digest(path)
        return Release(
            key=release_key(self._name, "files", digest), source=self._name, place=place,
            name=path.name, revision=digest, model=str(path.absolute()),
            published=told_time(_changed(path)),
        )  # fmt: skip


class KnownDigests:
    """Digests of folders by what the system says of their files: one small file a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest(self, path: Path) -> str:
        """The digest of a model's files, its README and the like left out."""
        names = _own_files(path)
        states = {name: _state(path / name) for name in names}
        kept = self._folder / f"{digest_json(str(path.absolute()))}.json"
        known = parse_object(kept.read_bytes(), str(kept), "digest") if kept.is_file() else {}
        if known.get("files") != states or "digest" not in known:
            known = {"files": states, "digest": digest_of(path, names)}
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, json.dumps(known) + "\n")
        return str(known["digest"])


def digest_of(path: Path, names: Iterable[str]) -> str:
    """The digest of a model's files, each read."""
    return digest_listing({name: digest_file(path / name) for name in names})


def _own_files(path: Path) -> list[str]:
    """A model's files, its README and the like left out."""
    return [name for name in LocalFolder(path).names() if is_model_file(name)]


class S3Source:
    """Folders below a prefix, each with a config.json."""

    def __init__(
        self, name: str, settings: SourceSettings, folder: Path, state: Path | None
    ) -> None:
        self._name, self._settled = name, settings.settled
        self.places = (str(settings.s3).rstrip("/"),)

    def listed(self, place: str) -> list[Release]:
        """Every folder with a config.json whose objects were left alone for long enough."""
        files: dict[str, dict[str, tuple[str, datetime]]] = defaultdict(dict)
        for name, state, changed in S3Folder(place).entries():
            folder, _, file = name.rpartition("/")
            files[folder][file] = state, changed
        return [
            self._release(place, folder, found)
            for folder, found in files.items()
            if CONFIG in found
            and is_settled(max(changed for _, changed in found.values()), self._settled)
        ]

    def described(self, release: Release) -> Description:
        """The model by its configuration and headers."""
        return Description.of(open_checkpoint(release.model))

    def is_still(self, release: Release) -> bool:
        """Whether its objects are those that were listed, by names, sizes and ETags."""
        entries = S3Folder(release.model).entries()
        own = {name: state for name, state, _ in entries if is_model_file(name)}
        return not own or digest_json(own) == release.revision

    def _release(self, place: str, folder: str, files: dict[str, tuple[str, datetime]]) -> Release:
        own = {name: state for name, (state, _) in files.items() if is_model_file(name)}
        digest = digest_json(own)
        return Release(
            key=release_key(self._name, "objects", digest), source=self._name, place=place,
            name=folder or place.rpartition("/")[2], revision=digest,
            model=f"{place}/{folder}".rstrip("/"),
            published=told_time(max(changed for _, changed in files.values())),
        )  # fmt: skip


def is_settled(changed: datetime, seconds: float, now: datetime | None = None) -> bool:
    """Whether the last change is long enough ago."""
    return ((now or datetime.now(UTC)) - changed).total_seconds() >= seconds


def _is_model(path: Path) -> bool:
    return not path.name.startswith(".") and (path / CONFIG).is_file()


def _changed(path: Path) -> datetime:
    """When the last of a folder's files changed, as whoever wrote it tells."""
    return _latest(path, "st_mtime")


def _touched(path: Path) -> datetime:
    """When the last of a folder's files changed here: a copy may keep the times of its original.

    The system's own time of a change cannot be set by whoever writes.
    """
    return max(_changed(path), _latest(path, "st_ctime"))


def _latest(path: Path, which: str) -> datetime:
    times = (getattr(file.stat(), which) for file in path.iterdir() if file.is_file())
    return datetime.fromtimestamp(max(times), UTC)


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
