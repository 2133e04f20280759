"""Names that come from elsewhere: of files in a manifest, a hub or a listing, and of texts."""

from __future__ import annotations

from pathlib import PurePosixPath

from bipline.base.errors import InvalidInput

LONGEST_LABEL = 100


def is_plain_name(name: str) -> bool:
    """Whether a POSIX path stays below the directory that it is taken from, on any system."""
    parts = name.split("/")
    odd = {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name
    return not odd and PurePosixPath(name).as_posix() == name


def check_label(name: str, what: str) -> None:
    """Raise InvalidInput for what cannot be the name of a figure in tables and records."""
    # NUL to tell apart what is no text at all.
    text = name if isinstance(name, str) else "\0"
    if not text.isprintable() or not text.strip() or len(text) > LONGEST_LABEL:
        raise InvalidInput(
            f"{what} {name!a:.60}: give a name of 1 to {LONGEST_LABEL} signs that can be shown"
        )
