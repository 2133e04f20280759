"""Settings of a watch: where new releases come from, which of them count, and what they become."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bipline.settings.base import ByteCount, Settings
from bipline.settings.notify import NotifySettings
from bipline.settings.placeholders import PART
from bipline.settings.stack import USUAL_STATE
from bipline.storage.names import is_plain_name

NOW = "now"
PLACES = ("organisation", "repositories", "s3", "registered", "folder")
SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
COUNT = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(UNITS)}])")
# What an override may hold of the release that it is for.
PARTS = {"name", "revision", "source"}


def _count(value: Any) -> Any:
    """Parameters as a number, or with a unit: 135M, 7B, 1.5B."""
    if not isinstance(value, str):
        return value
    if not (found := COUNT.fullmatch(value)):
        raise ValueError(f"{value!r} is not a number of parameters; write 135000000, 135M or 7B")
    return round(float(found[1]) * UNITS[found[2]])


def _since(value: str) -> str:
    if value != NOW:
        try:
            moment(value)
        except ValueError:
            raise ValueError(
                f"since {value!r}: write now, a date as 2026-12-01 or a time as 2026-12-01T08:00"
            ) from None
    return value


def moment(text: str) -> datetime:
    """A date or time; without a zone it is UTC. Raises ValueError for anything else."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


ParameterCount = Annotated[int, BeforeValidator(_count), Field(ge=1)]


class FilterSettings(Settings):
    """Which releases of a source count. What is left out lets every release through."""

    families: tuple[str, ...] = Field(
        default=(), description="model_type of config.json, such as llama or qwen3; empty: any"
    )
    parameters_at_least: ParameterCount | None = Field(
        default=None, description="fewest parameters by the headers of the weights; 135M, 7B"
    )
    parameters_at_most: ParameterCount | None = Field(default=None, description="most parameters")
    licences: tuple[str, ...] = Field(
        default=(), description="licences as the release names them, such as apache-2.0; empty: any"
    )
    tags: tuple[str, ...] = Field(
        default=(),
        description="tags it must all have: the hub's, or NAME=VALUE of a registered version",
    )


class SourceSettings(Settings):
    """One place of releases, and the configuration that each new one is compressed by."""

    organisation: str | None = Field(default=None, description="all models of an owner on the hub")
    repositories: tuple[str, ...] = Field(
        default=(), description="models on the hub, each ORG/NAME; the branch main is watched"
    )
    s3: str | None = Field(
        default=None, description="s3://bucket/prefix: every folder below it with a config.json"
    )
    registered: str | None = Field(
        default=None, description="name of a registered model: every version of it"
    )
    folder: str | None = Field(default=None, description="directory with a folder for each model")
    registry: str | None = Field(
        default=None,
        description="address of the registry that holds `registered`; null: that of its runs, by "
        "promote.registry_uri, promote.tracking_uri, state or MLFLOW_TRACKING_URI",
    )
    compress: str = Field(description="YAML file of the compress run that a release starts")
    set: tuple[str, ...] = Field(
        default=(),
        description="overrides of that file, section.field=value; {name}, {revision} and {source} "
        "stand for the release's",
    )
    since: Annotated[str, AfterValidator(_since)] = Field(
        default=NOW,
        description="where to begin: now (what is there at the first look is old), or a date",
    )
    settled: int = Field(
        default=60, ge=0, description="seconds that files in s3 or folder are left alone first"
    )
    filters: FilterSettings = FilterSettings()

    @property
    def kind(self) -> str:
        """Which place it is: the name of the one field that names it."""
        return next(name for name in PLACES if getattr(self, name))

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        named = [name for name in PLACES if getattr(self, name)]
        if len(named) != 1:
            told = ", ".join(named) or "none"
            raise ValueError(f"a source is one of {', '.join(PLACES)}; here: {told}")
        if self.registry and not self.registered:
            raise ValueError("registry: is asked for a registered model alone; give registered too")
        return self

    @model_validator(mode="after")
    def _overrides_are_whole(self) -> Self:
        for override in self.set:
            if unknown := set(PART.findall(override)) - PARTS:
                raise ValueError(
                    f"set {override!r}: {{{min(unknown)}}} stands for nothing; "
                    "{name}, {revision} and {source} do"
                )
            if override.startswith("model="):
                raise ValueError(f"set {override!r}: the model is the release")
        return self


class LimitSettings(Settings):
    """What runs may take of this machine."""

    runs: int = Field(default=1, ge=1, le=1000, description="runs at once on this machine")
    disk_free: ByteCount = Field(
        default=20 * 10**9,
        description="bytes that must be free, in the state folder, before a run starts",
    )


class RetrySettings(Settings):
    """When a run that failed by its surroundings (exit code 3) is started again."""

    first: float = Field(default=60.0, gt=0, description="seconds to wait after a first failure")
    factor: float = Field(
        default=2.0, ge=1, le=100, description="each wait is so many times the last"
    )
    longest: float = Field(
        default=3600.0, gt=0, description="longest wait in seconds; a Retry-After may be longer"
    )
    attempts: int = Field(default=8, ge=1, description="failures after which it is parked")


class WatchSettings(Settings):
    """New releases become compress runs, each exactly once."""

    sources: dict[str, SourceSettings] = Field(min_length=1, description="sources by a short name")
    state: str = Field(default=USUAL_STATE, description="folder for logs and what is fetched")
    journal: str | None = Field(
        default=None,
        description="folder or s3://bucket/prefix that all watchers share; null: STATE/watch",
    )
    every: float = Field(default=900.0, gt=0, description="seconds between two looks at a source")
    limits: LimitSettings = LimitSettings()
    retry: RetrySettings = RetrySettings()
    notify: NotifySettings = NotifySettings()

    @property
    def folder(self) -> Path:
        """What the watch keeps on this machine: logs, results, locks."""
        return Path(self.state) / "watch"

    @model_validator(mode="after")
    def _names_are_short(self) -> Self:
        for name in self.sources:
            if not (SHORT.fullmatch(name) and is_plain_name(name)):
                raise ValueError(
                    f"source {name!a:.60}: give a name of 1 to 40 letters, digits and . _ -"
                )
        return self
