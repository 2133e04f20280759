"""The registry in S3: ``s3://bucket/prefix``, where each registered model has a prefix of its own.

Below ``PREFIX/NAME/``: the books of :mod:`bipline.delivery.registries.ledger`, an object each;
``packages/DIGEST/`` with the files of a package, its manifest last; and ``aliases/NAME.json`` with
the version that an alias points at. What decides is put on the condition that nothing lies there
yet, an alias on the condition that it is still what was read: nobody writes over what came later.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from bipline.base.errors import InvalidInput, Refused
from bipline.base.progress import track
from bipline.delivery.registries.ledger import LedgerRegistry, check_model_alias
from bipline.storage.folder import digest_byte_file
from bipline.storage.manifest import (
    MANIFEST_NAME,
    compare_names,
    differs,
    is_beside,
    parse_manifest,
    read_manifest,
)
from bipline.storage.names import is_plain_name
from bipline.storage.s3 import S3Folder
from bipline.storage.s3_transfer import download, entry_of, upload
from bipline.storage.strict_json import parse_object

PACKAGES, ALIASES, SUFFIX = "packages", "aliases", ".json"
ALIAS = re.compile(rf"[\w-]+{re.escape(SUFFIX)}", re.ASCII)
DIGITS = 32


class S3Registry(LedgerRegistry):
    """One registered model, at ``s3://bucket/prefix/NAME``."""

    def __init__(self, name: str, address: str) -> None:
        if "/" in name or not is_plain_name(name):
            raise InvalidInput(f"model name {name!r}: cannot be a part of an S3 address")
        self.name, self.address = name, address.rstrip("/")
        self._place = S3Folder(f"{self._bucket_address()}/{name}")
        # What each alias was when it was read last, by which its next write is conditional. Those
        # that were written to are read by name too, as a listing may be late.
        self._etags: dict[str, str] = {}

    def _bucket_address(self) -> str:
        return self.address

    def check_ready(self) -> None:
        """See :meth:`LedgerRegistry.check_ready`; a bucket without conditional writes is none."""
        self._place.check_writable()

    def aliases(self) -> dict[str, str]:
        """Versions by alias, as they are now."""
        names = self._names(ALIASES)
        listed = [name.removesuffix(SUFFIX) for name in names if ALIAS.fullmatch(name)]
        found = {alias: self._alias(alias) for alias in sorted({*listed, *self._etags})}
        return {alias: version for alias, version in found.items() if version is not None}

    def point(self, alias: str, version: str | None) -> None:
        """See :meth:`LedgerRegistry.point`."""
        body = json.dumps({"version": version}).encode()
        self._place.put(_alias_name(alias), body, over=self._etags.setdefault(alias, ""))

    def _alias(self, alias: str) -> str | None:
        name = _alias_name(alias)
        found = self._place.small(name)
        self._etags[alias] = found[1] if found else ""
        if found is None:
            return None
        text = found[0]
        version = parse_object(text, self._place.where(name), "alias", "").get("version")
        return None if version is None else str(version)

    def _names(self, folder: str) -> list[str]:
        return self._place.below(folder).listed()

    def _read(self, name: str) -> bytes | None:
        found = self._place.small(name)
        return found[0] if found else None

    def _write(self, name: str, text: str, new: bool) -> bool:
        return self._place.put(name, text.encode(), over="" if new else None) is not None

    def _files(self, location: str) -> S3Folder:
        return S3Folder(self._place.where(location))

    def _store(self, package: Path) -> str:
        manifest = read_manifest(package)
        location = f"{PACKAGES}/{manifest.digest[:DIGITS]}"
        place = self._files(location)
        if self._read(f"{location}/{MANIFEST_NAME}") is not None:
            return location
        paths = [path for path in package.rglob("*") if path.is_file()]
        entries = {path.relative_to(package).as_posix(): path for path in sorted(paths)}
        del entries[MANIFEST_NAME]
        # Of a run that was killed while it told of itself.
        place.remove(name for name in place.listed() if name not in entries)
        for name in track(entries, f"uploading {self.name} to {self.address}"):
            entry = manifest.files.get(name) or entry_of(entries[name])
            upload(place, name, entries[name], entry)
        place.put(MANIFEST_NAME, manifest.to_json().encode(), "")
        return location

    def _file(self, location: str, name: str) -> bytes:
        return self._files(location).read(name)

    def _check(self, location: str, package_digest: str) -> None:
        place = self._files(location)
        manifest = parse_manifest(place.read(MANIFEST_NAME), place.where(MANIFEST_NAME))
        if manifest.digest != package_digest:
            raise Refused(f"{place.location}: is package {manifest.digest[:12]}")
        # A late listing lacks what is there, so what is listed there alone is compared.
        own = {name for name in place.listed() if not is_beside(name)}
        compare_names(place.location, own | set(manifest.files), manifest)
        for name, entry in track(manifest.files.items(), f"hashing {self.name} again"):
            file = place.open(name)
            if (file.size, digest_byte_file(file)) != (entry.size, entry.sha256):
                raise differs(place.location, name)

    def _fetch(self, location: str, folder: Path) -> None:
        place = self._files(location)
        for name in track(place.listed(), f"fetching {place.location}"):
            download(place.open(name), folder / name)


def _alias_name(alias: str) -> str:
    check_model_alias(alias.removeprefix("previous-"))
    return f"{ALIASES}/{alias}{SUFFIX}"
