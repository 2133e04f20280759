"""What an end of a run means for its release: done, tried again at a time, or parked."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from bipline.settings.watch import RetrySettings
from bipline.values.notice import Notice
from bipline.values.release import Release, ReleaseState, WatchRecord
from bipline.watch.launcher import Ended
from bipline.watch.sources import told_time

# Waits grow no more after so many failures: 100 to the power of more is no number of seconds.
MOST_GROWTH = 50


def ending(
    ended: Ended, before: WatchRecord, retry: RetrySettings, now: datetime
) -> tuple[ReleaseState, dict[str, Any]]:
    """The state that follows an end, and the fields of its record.

    What somebody stopped is no failure. Where a retry may help it is tried again after a growing
    wait, or when a server asks for it, if that is later; after so many failures it is parked.
    """
    failures = before.failures + (ended.passing and not ended.stopped)
    told = {
        "exit_code": ended.code, "reason": ended.reason, "log": before.log, "failures": failures,
    }  # fmt: skip
    if ended.stopped:
        return "retry-at", {**told, "until": told_time(now), "reason": "stopped"}
    if ended.code == 0:
        return "done", told
    if not ended.passing or failures >= retry.attempts:
        return "parked", told
    wait = max(backoff(retry, failures), ended.wait)
    return "retry-at", {**told, "until": told_time(now + timedelta(seconds=wait))}


def backoff(retry: RetrySettings, failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    growth = retry.factor ** min(failures - 1, MOST_GROWTH)
    return min(retry.longest, retry.first * growth)


def parked_notice(release: Release, record: WatchRecord) -> Notice:
    """What is told of a release that will not be tried again by itself."""
    return Notice(
        event="parked", pipeline="watch", run=release.run, source=release.model,
        exit_code=record.exit_code, reason=record.reason, log=record.log,
    )  # fmt: skip
