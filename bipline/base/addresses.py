"""Addresses as they may be shown: without the user, password or token that stands in them."""

from __future__ import annotations

import re

# A password may hold an @ that nobody encoded: everything up to the last one of the host goes.
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s\"'<>]*@")
_SECRET = re.compile(
    r"([?&;](?:[\w-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key)|sig|key)=)"
    r"[^&;\s\"'<>]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text in which no address tells who asks and by which password."""
    return _SECRET.sub(r"\1***", _USER.sub(r"\1", text))
