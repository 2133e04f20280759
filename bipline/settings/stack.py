"""Where a pipeline runs: a stack in a folder of its own, or one of the user's ZenML stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from bipline.settings.base import Settings
from bipline.settings.notify import NotifySettings

USUAL_STATE = ".bipline"
# Where a run keeps what it makes, who hears of it, and what else was asked for beside it, changes
# nothing that it makes.
WHERE = frozenset({"state", "stack", "notify", "models"})


class StackSettings(Settings):
    """A folder, or a stack by its name; neither is the active stack. And who hears of the runs."""

    state: str | None = Field(
        default=None,
        description="folder of a ZenML stack of its own, with the store, ZenML's and MLflow's "
        "state and logs; null: the stack below",
    )
    stack: str | None = Field(
        default=None, min_length=1, description="registered ZenML stack; null: the active one"
    )
    notify: NotifySettings = NotifySettings()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.state is not None and self.stack is not None:
            raise ValueError(
                f"state {self.state!r} means a stack in that folder; set it to null to run on "
                f"stack {self.stack!r}"
            )
        return self

    @property
    def folder(self) -> Path:
        """The folder for logs and what is fetched, whichever stack it is."""
        return Path(USUAL_STATE if self.state is None else self.state)
