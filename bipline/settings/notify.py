"""Who hears of a run that failed and of an alias that moved: a webhook, and of which events.

A webhook's address is often its password. So it is never part of what a run tells or keeps, and
no message here repeats it.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from bipline.base.errors import InvalidInput
from bipline.settings.base import Settings

Event = Literal["failure", "promotion", "rollback", "refusal", "parked"]
EVENTS: tuple[Event, ...] = get_args(Event)
# How a configuration names a variable that holds the address, and the one that is followed where
# none is named.
FROM, VARIABLE = "env:", "BIPLINE_WEBHOOK"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WANTED = "give an http:// or https:// address, or env:NAME for a variable that holds it"


def _webhook(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str) and value.startswith(FROM):
        if not NAME.fullmatch(value.removeprefix(FROM)):
            raise ValueError(f"notify.webhook names no variable: write {FROM}NAME")
    elif not isinstance(value, str) or not _is_address(value):
        raise ValueError(f"notify.webhook (not repeated here) is no address: {WANTED}")
    return value


def _is_address(text: str) -> bool:
    """Whether something can be sent there; what is asked never says what the text is."""
    if not (text.isascii() and text.isprintable()) or " " in text:
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class NotifySettings(Settings):
    """What is told to whom."""

    webhook: Annotated[str | None, BeforeValidator(_webhook)] = Field(
        default=None,
        repr=False,
        description="address that notices are posted to as JSON, or env:NAME for a variable that "
        f"holds it; null: {VARIABLE}, if that is set",
    )
    on: tuple[Event, ...] = Field(default=EVENTS, description=f"what is told: {', '.join(EVENTS)}")

    def address(self) -> str | None:
        """Where notices go, or None. Raises InvalidInput for a variable that holds no address."""
        if self.webhook is not None and not self.webhook.startswith(FROM):
            return self.webhook
        named = VARIABLE if self.webhook is None else self.webhook.removeprefix(FROM)
        found = os.environ.get(named, "").strip()
        if not found and self.webhook is None:
            return None
        if not found:
            raise InvalidInput(f"notify.webhook: the variable {named} is not set")
        if not _is_address(found):
            raise InvalidInput(f"the variable {named} (not repeated here) is no address: {WANTED}")
        return found
