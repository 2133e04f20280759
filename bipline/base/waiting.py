"""How long a server asks to wait: as an error tells it, and as its line is read again.

A run is a process of its own, and its last line is what is left of its error. So the sentence is
made and found here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_ASKED = re.compile(r"asks to wait (\d+) seconds")
# Longer than this nobody means: a wrong clock, or a lie.
LONGEST = 7 * 24 * 3600


def asks_to_wait(headers: Mapping[str, str]) -> str:
    """The sentence for a Retry-After among an answer's headers, or empty where there is none."""
    seconds = _seconds(next((v for k, v in headers.items() if k.lower() == "retry-after"), ""))
    return f"; it asks to wait {seconds} seconds" if seconds else ""


def asked_wait(message: str) -> int:
    """Seconds that a message says a server asks to wait, or 0."""
    found = _ASKED.search(message)
    return min(int(found[1][:9]), LONGEST) if found else 0


def _seconds(text: str) -> int:
    """A number of seconds, or the time until a date."""
    if text.isascii() and text.isdigit():
        return min(int(text[:9]), LONGEST)
    try:
        until = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0, min(round((until - datetime.now(UTC)).total_seconds()), LONGEST))
