"""Text from outside as it may be shown: names are never instructions to a terminal.

A file's or a text's name may hold escape sequences that colour, move or rename a terminal, marks
that turn the direction of writing, and bytes that are no UTF-8 at all.
"""

from __future__ import annotations

import re

# Control characters, what turns the direction of writing, lone surrogates.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text as one line, with every character that would steer a terminal as its escape."""
    return _UNSAFE.sub(lambda match: ascii(match.group())[1:-1], text)
