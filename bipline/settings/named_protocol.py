"""Protocols by name: the ready ones in ``configs/protocols``, and files of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bipline.base.bundled import bundled
from bipline.base.errors import InvalidInput
from bipline.settings.base import Settings
from bipline.settings.protocol import Protocol
from bipline.settings.yaml_reading import read_yaml

READY = ("quick", "llm-pruner-128", "standard-2048")
CHANGED = " (changed)"
ASSETS = "assets/"


class NamedProtocol(Settings):
    """A protocol with its texts and tasks, under a name and a version that records carry."""

    name: str = Field(description="what records call it")
    version: int = Field(ge=1, description="goes up with every change of the file")
    texts: dict[str, str] = Field(default={}, description="name: file, or hf:org/name")
    join: dict[str, str] = Field(default={}, description="what stands between a text's documents")
    tasks: dict[str, str] | tuple[str, ...] = Field(
        default={}, description="name: file of rows, or hf:; a list of lm-eval's names is hf: each"
    )
    protocol: Protocol = Field(default=Protocol(), description="how they are measured")

    @property
    def task_sources(self) -> dict[str, str]:
        """Tasks by name, with where they lie."""
        return self.tasks if isinstance(self.tasks, dict) else dict.fromkeys(self.tasks, "hf:")

    def settings(self, changed: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of :class:`Protocol`; with others than its own it has another name."""
        own = {**self.protocol.model_dump(exclude={"name", "version"}), "join": self.join}
        told = {**own, **changed}
        name = self.name if told == own else f"{self.name}{CHANGED}"
        return {**told, "name": name, "version": self.version}


def load_protocol(name: str) -> NamedProtocol:
    """A protocol by a ready name or in a YAML file. Raises InvalidInput for neither."""
    path = bundled(f"configs/protocols/{name}.yaml") if name in READY else Path(name)
    if not path.is_file():
        raise InvalidInput(f"protocol {name!r}: no such file; ready protocols: {', '.join(READY)}")
    try:
        values = json.dumps(read_yaml(path.read_text(encoding="utf-8")))
        found = NamedProtocol.model_validate_json(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InvalidInput(f"protocol {path}: {where}: {problem['msg'].lower()}") from None
    except (InvalidInput, TypeError, ValueError) as error:
        raise InvalidInput(f"protocol {path}: {error}") from None
    return found if name not in READY else _with_assets(found)


def _with_assets(protocol: NamedProtocol) -> NamedProtocol:
    """What comes with bipline is named by where it lies on this machine."""

    def placed(sources: Mapping[str, str]) -> dict[str, str]:
        return {
            name: str(bundled(source)) if source.startswith(ASSETS) else source
            for name, source in sources.items()
        }

    changed = {"texts": placed(protocol.texts), "tasks": placed(protocol.task_sources)}
    return protocol.model_copy(update=changed)


def expand_protocol(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose ``evaluate.protocol`` is a name, or a mapping with one, in full.

    The protocol's texts and tasks stand beside those that are listed, which come first; they are
    what is measured where ``evaluate`` names none. Raises InvalidInput for no such protocol.
    """
    section = values.get("evaluate")
    if not isinstance(section, Mapping):
        return values
    given = section.get("protocol")
    given = {"name": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or "name" not in given or "version" in given:
        return values
    try:
        named = load_protocol(str(given["name"]))
    except InvalidInput as error:
        raise InvalidInput(f"evaluate.protocol: {error}") from None
    changed = {name: value for name, value in given.items() if name != "name"}
    evaluate = {"texts": tuple(named.texts), "tasks": tuple(named.task_sources), **section}
    tasks = values.get("tasks", {})
    listed = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, "hf:")
    return {
        **values,
        "texts": {**named.texts, **values.get("texts", {})},
        "tasks": {**named.task_sources, **listed},
        "evaluate": {**evaluate, "protocol": named.settings(changed)},
    }
