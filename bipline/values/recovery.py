"""RecoveryRecord: what a training after pruning did, and whether it counts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bipline.values.paired import PairedDifference
from bipline.values.record import ADDED

SCHEMA_VERSION: Literal[1] = 1


class TrainingPoint(BaseModel):
    """A point of the curve: the mean loss since the point before, and the rate at this step.

    ``validation`` is the loss on windows set aside, where they were looked at. Speed is not told:
    the same training gives the same record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float
    learning_rate: float
    validation: float | None = ADDED


class RecoveryRecord(BaseModel):
    """What a recovery did: held-out perplexity before and after, and whether it was accepted.

    ``difference`` is of the loss in nats a token, paired over the windows of the held-out text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    accepted: bool
    reason: str
    held_out_perplexity_before: float
    held_out_perplexity_after: float | None
    merge_difference: float | None
    recipe: dict[str, Any]
    tokens: int
    difference: PairedDifference | None = ADDED
    held_out_perplexity_dense: float | None = ADDED
    best_step: int | None = ADDED
    last_good_step: int | None = ADDED
    curve: tuple[TrainingPoint, ...] = Field(default=(), exclude_if=lambda points: not points)
