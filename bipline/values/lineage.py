"""RunLineage: when, where and by which stages a package was made. No digest of it covers this."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1


class StageLineage(Frozen):
    """One stage of a run. ``key`` and ``digest`` are None for what no Store keeps."""

    status: str
    key: str | None = None
    digest: str | None = None
    seconds: float | None = None
    ended: datetime | None = None


class RunLineage(Frozen):
    """One run that gave a package to a registry, by the names that trackers keep of it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run_name: str
    run_id: str
    host: str
    started: datetime
    ended: datetime
    code: dict[str, str] = Field(default_factory=dict)
    stages: dict[str, StageLineage] = Field(default_factory=dict)

    def to_json(self) -> str:
        """The text of its file."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"
