"""Texts as they may be shown: without what only this process and its servers are to know.

That is the user, password or token that stands in an address, and the value of a variable whose
name says that it is secret.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# A password may hold an @ that nobody encoded: everything up to the last one of the host goes.
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s\"'<>]*@")
_SECRET = re.compile(
    r"([?&;](?:[\w-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key)|sig|key)=)"
    r"[^&;\s\"'<>]+",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"PASSWORD|PASSWD|SECRET|TOKEN(?!IZER)|WEBHOOK|CREDENTIAL|(^|_)(API|ACCESS)?KEY($|_)",
    re.IGNORECASE,
)
# Shorter values are words that stand in many a text.
_SHORTEST = 8


def without_secrets(text: str) -> str:
    """A text in which no address tells who asks and by which password, and no secret variable."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _NAME.search(name) and not _is_path(value):
            text = text.replace(value, "***")
    return _SECRET.sub(r"\1***", _USER.sub(r"\1", text))


def _is_path(value: str) -> bool:
    """Whether a variable names a file, such as one with credentials in it: no secret itself."""
    return value.startswith("/") and Path(value).exists()
