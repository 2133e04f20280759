"""Names of files that come from elsewhere: from a manifest, a hub, or a listing."""

from __future__ import annotations

from pathlib import PurePosixPath


def is_plain_name(name: str) -> bool:
    """Whether a POSIX path stays below the directory that it is taken from, on any system."""
    parts = name.split("/")
    odd = {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name
    return not odd and PurePosixPath(name).as_posix() == name
