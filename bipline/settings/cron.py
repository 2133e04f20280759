"""Cron expressions: whether one can be one, and when it comes next."""

from __future__ import annotations

from datetime import UTC, datetime

from bipline.base.errors import InvalidInput
from bipline.base.extras import require

# Kubeflow reads a sixth field, the first, as seconds.
FIELDS = (5, 6)


def next_time(text: str, after: datetime | None = None) -> datetime:
    """When a cron expression comes next, in UTC. Raises InvalidInput for one that never does."""
    croniter = require("croniter", "pipeline")
    if len(text.split()) not in FIELDS or "%" in text:
        raise InvalidInput(
            f"--schedule {text!r}: write five fields, as in '0 3 * * 1': minute, hour, day of "
            "the month, month, day of the week"
        )
    try:
        seconds_first = len(text.split()) == max(FIELDS)
        times = croniter.croniter(
            text, after or datetime.now(UTC), second_at_beginning=seconds_first
        )
        found: datetime = times.get_next(datetime)
    except (ValueError, KeyError) as error:  # croniter's own are ValueErrors
        raise InvalidInput(f"--schedule {text!r}: no cron expression: {error}") from None
    return found
