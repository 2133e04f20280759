"""ModelOrigin: what a model that bipline wrote says of itself, in every copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bipline.base.code import commit, version
from bipline.storage.digests import digest_json
from bipline.values.plan import PruningPlan
from bipline.values.reading import typed

SCHEMA_VERSION: Literal[1] = 1
# The section of a config.json, and what keys in the metadata of a file of weights begin with.
SECTION = "bipline"


class ModelOrigin(BaseModel):
    """Where a model's tensors came from, and which code wrote them. No host, path or time.

    ``base_model`` and ``base_revision`` are named in packages alone: what lies beside a prune is
    the same whatever its model was called. ``tensor_digest`` is the model's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    base_model: str | None = None
    base_revision: str | None = None
    base_tensor_digest: str
    plan_digest: str | None = None
    tensor_digest: str | None = None
    version: str
    git_commit: str | None = None

    @classmethod
    def of_plan(cls, plan: PruningPlan) -> ModelOrigin:
        """That of what this code makes of the plan's model."""
        return cls.of_base(plan.tensor_digest).model_copy(update={"plan_digest": plan.digest})

    @classmethod
    def of_base(cls, base_tensor_digest: str) -> ModelOrigin:
        """That of what this code makes of a model without a plan."""
        return cls(base_tensor_digest=base_tensor_digest, version=version(), git_commit=commit())

    def metadata(self) -> dict[str, str]:
        """What is known, as texts under ``bipline.FIELD``: for files that hold texts alone."""
        known = self.model_dump(mode="json", exclude={"schema_version"}, exclude_none=True)
        return metadata_of(known)

    def section(self) -> dict[str, Any]:
        """The section of a config.json."""
        return {SECTION: self.model_dump(mode="json", exclude_none=True)}


def metadata_of(told: Mapping[str, Any]) -> dict[str, str]:
    """What is told, as texts under ``bipline.FIELD``."""
    return {f"{SECTION}.{name}": str(value) for name, value in told.items()}


def origin_in(config: Mapping[str, Any], where: str) -> ModelOrigin | None:
    """The origin that a config.json tells; None where it tells none. Raises InvalidInput."""
    section = config.get(SECTION)
    if section is None:
        return None
    told = section if isinstance(section, dict) else {"section": section}
    return typed(told, ModelOrigin, where, f"section {SECTION}")


def config_digest(config: Mapping[str, Any]) -> str:
    """The digest of a config.json's JSON value without the section: a commit is no content."""
    return digest_json({name: value for name, value in config.items() if name != SECTION})
