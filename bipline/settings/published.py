"""Figures that others published, to be shown beside a run's own and never among them."""

from __future__ import annotations

from pydantic import Field

from bipline.settings.base import Settings


class PublishedRow(Settings):
    """What somebody printed of one method on one model; what they did not print is left out."""

    model: str = Field(min_length=1, description="the model as the source calls it")
    method: str = Field(min_length=1, description="the method as the source calls it")
    removed: float = Field(ge=0, lt=1, description="share of the parameters that was removed")
    perplexity: dict[str, float] = Field(default={}, description="by the name of this run's text")
    accuracy: float | None = Field(
        default=None, ge=0, le=100, description="mean of the tasks, in percent"
    )
    source: str = Field(min_length=1, description="where it is printed")
