"""Items: what single windows and rows gave, so that two models are compared pair by pair."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1


class TaskItem(Frozen):
    """One row of a task: the log-likelihood of every choice in nats, and what was chosen.

    ``row`` counts from 0 in the task's file. ``choice_norm`` is the choice by log-likelihood per
    character, None where the task has no such metric.
    """

    row: int
    loglikelihoods: tuple[float, ...]
    gold: int
    choice: int
    choice_norm: int | None = None

    @property
    def is_right(self) -> bool:
        """Whether the choice is the row's answer."""
        return self.choice == self.gold

    @property
    def is_right_norm(self) -> bool:
        """Whether the choice per character is the row's answer."""
        return self.choice_norm == self.gold


class EvaluationItems(Frozen):
    """The items behind a record: mean nats per token by window of a text, rows by task."""

    schema_version: Literal[1] = SCHEMA_VERSION
    windows: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    tasks: dict[str, tuple[TaskItem, ...]] = Field(default_factory=dict)
