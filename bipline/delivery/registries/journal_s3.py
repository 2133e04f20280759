"""The journal in S3: one object an entry, put on the condition that nothing lies there yet.

Below a registered model's prefix: ``promotions/00000001.json`` and so on, and ``aliases/NAME.json``
with the version that an alias points at. An alias too is put on the condition that it is still
what was read, so nobody writes over what came later.
"""

from __future__ import annotations

import json
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.storage.names import is_plain_name
from bipline.storage.s3 import S3Folder
from bipline.storage.s3_client import MissingObject
from bipline.storage.strict_json import parse_object
from bipline.values.promotion import JournalEntry
from bipline.values.reading import typed

PROMOTIONS, ALIASES, SUFFIX = "promotions", "aliases", ".json"
DIGITS = 8


class S3Registry:
    """The journal and the aliases of one registered model, at ``s3://bucket/prefix/NAME``."""

    def __init__(self, location: str, name: str) -> None:
        if "/" in name or not is_plain_name(name):
            raise InvalidInput(f"model name {name!r}: cannot be a part of an S3 address")
        self.name = name
        self._place = S3Folder(f"{location.rstrip('/')}/{name}")
        # What each alias was when it was read last, by which its next write is conditional.
        self._etags: dict[str, str] = {}

    def entries(self) -> dict[int, JournalEntry]:
        """The whole journal by number.

        A listing may be late, so what lies behind its last entry is asked for by name.
        """
        below = S3Folder(self._place.where(PROMOTIONS))
        numbers = {int(name.removesuffix(SUFFIX)) for name in below.listed()}
        found = {number: self._entry(number) for number in sorted(numbers)}
        number = max(numbers, default=0) + 1
        while (entry := self._entry(number)) is not None:
            found[number] = entry
            number += 1
        return {number: entry for number, entry in found.items() if entry is not None}

    def append(self, entry: JournalEntry) -> int:
        """Put an entry under the first number that is free."""
        number = max(self.entries(), default=0) + 1
        while self._place.put(_entry_name(number), entry.to_json().encode(), over="") is None:
            there = self._entry(number)
            if there is not None and there.id == entry.id:
                break  # the answer to our own, earlier try was lost on the way
            number += 1
        return number

    def aliases(self) -> dict[str, str]:
        """Versions by alias, as they are now."""
        below = S3Folder(self._place.where(ALIASES))
        names = [name.removesuffix(SUFFIX) for name in below.listed()]
        found = {alias: self._alias(alias) for alias in names}
        return {alias: version for alias, version in found.items() if version is not None}

    def point(self, alias: str, version: str | None) -> None:
        """Set an alias, or remove it, if it is still what :meth:`aliases` found; else nothing."""
        body = json.dumps({"version": version}).encode()
        self._place.put(_alias_name(alias), body, over=self._etags.get(alias, ""))

    def _entry(self, number: int) -> JournalEntry | None:
        name = _entry_name(number)
        value = self._read(name)
        if value is None:
            return None
        return typed(value, JournalEntry, self._place.where(name), "journal entry")

    def _alias(self, alias: str) -> str | None:
        name = _alias_name(alias)
        head = self._place.head(name)
        value = self._read(name)
        if head is None or value is None:
            return None
        self._etags[alias] = str(head["ETag"])
        version = value.get("version")
        return None if version is None else str(version)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return parse_object(self._place.read(name), self._place.where(name), "journal", "")
        except MissingObject:
            return None


def _entry_name(number: int) -> str:
    return f"{PROMOTIONS}/{number:0{DIGITS}}{SUFFIX}"


def _alias_name(alias: str) -> str:
    if "/" in alias or not is_plain_name(alias):
        raise InvalidInput(f"alias {alias!r}: cannot be the name of an object in S3")
    return f"{ALIASES}/{alias}{SUFFIX}"
