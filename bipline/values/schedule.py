"""Schedules of a stack's orchestrator, as ZenML remembers them."""

from __future__ import annotations

from typing import Literal

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1


class RunSchedule(Frozen):
    """Runs of a pipeline at the times of a cron expression, started by an orchestrator.

    ``next`` is when it comes next by this machine's reading, in UTC; empty for one that is not
    active, or that has no cron expression.
    """

    name: str
    cron: str
    pipeline: str
    orchestrator: str
    active: bool
    next: str


class RunSchedules(Frozen):
    """The schedules of a stack's ZenML, in the order they were made."""

    schema_version: Literal[1] = SCHEMA_VERSION
    stack: str
    schedules: tuple[RunSchedule, ...]
