"""Digests: how every file, value and tensor is named by its content (sha256, hex)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHUNK_BYTES = 8 << 20


def digest_bytes(data: bytes | memoryview[int]) -> str:
    """The sha256 of bytes, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """The sha256 of a file, read in chunks so that a 100 GB shard needs 8 MB of memory."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises ValueError for NaN and infinities, which JSON cannot hold.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_json(value: Any) -> str:
    """The digest of a JSON value, independent of key order and spacing."""
    return digest_bytes(canonical_json(value).encode())


def digest_listing(digests: Mapping[str, str]) -> str:
    """The digest of a named set of digests: sha256 over sorted ``digest  name`` lines.

    This is what names a directory: moving it changes nothing, renaming a file in it does.
    """
    lines: Iterable[str] = (f"{digests[name]}  {name}\n" for name in sorted(digests))
    return digest_bytes("".join(lines).encode())
