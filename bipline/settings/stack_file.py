"""A stack as a file: its components, with places for what Terraform made and for secrets.

``${name}`` is taken from a file of values such as ``terraform output -json`` writes, and
``${env:NAME}`` from the environment, so that no secret stands in a file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from bipline.base.errors import InvalidInput
from bipline.settings.base import Settings, tuples
from bipline.settings.pools import NodePool
from bipline.settings.yaml_reading import read_yaml

PLACE = re.compile(r"\$\{(env:)?([A-Za-z_][A-Za-z0-9_]*)\}")
POOLS = TypeAdapter(tuple[NodePool, ...])


class ComponentFile(Settings):
    """A component of a stack, in ZenML's words."""

    flavor: str = Field(min_length=1, description="ZenML's flavor")
    configuration: dict[str, Any] = Field(default={}, description="what the flavor is told")


class StackFile(Settings):
    """A stack: its name and its components by kind."""

    name: str = Field(min_length=1, description="what ZenML calls the stack")
    not_run: str | None = Field(
        default=None, description="what of it nobody has run yet; told when it is applied"
    )
    components: dict[str, ComponentFile] = Field(description="by kind, as ZenML calls it")

    def configuration(self, kind: str) -> dict[str, Any]:
        """What a component is told; empty where there is none."""
        found = self.components.get(kind)
        return found.configuration if found else {}

    @property
    def pools(self) -> tuple[NodePool, ...]:
        """The node pools of the orchestrator."""
        return node_pools(self.configuration("orchestrator").get("pools") or ())


def node_pools(values: Any) -> tuple[NodePool, ...]:
    """Node pools as a configuration holds them. Raises InvalidInput for what is none."""
    try:
        return POOLS.validate_python(tuples(list(values)))
    except ValidationError as error:
        raise InvalidInput(f"orchestrator pools: {_first(error)}") from None


def load_stack(path: Path, values: Path | None = None, filled: bool = True) -> StackFile:
    """A stack file with its places filled.

    Without ``filled`` a place that has no value stays as it is written. Raises InvalidInput for
    what is no such file, and for places without a value, all named.
    """
    content = _mapping(path, "stack file")
    given = {} if values is None else _values(values)
    missing: list[str] = []
    content = _filled(content, lambda *place: _value(given, missing, *place))
    if missing and filled:
        raise InvalidInput(
            f"{path}: no value for {', '.join(dict.fromkeys(missing))}; give --values FILE, as "
            "`terraform output -json` writes it, and set the variables that env: names"
        )
    try:
        return StackFile.model_validate(content)
    except ValidationError as error:
        raise InvalidInput(f"{path}: {_first(error)}") from None


def _mapping(path: Path, kind: str) -> dict[str, Any]:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such {kind}") from None
    except (OSError, UnicodeDecodeError, InvalidInput) as error:
        raise InvalidInput(f"{path}: no {kind}: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{path}: not a mapping, so no {kind}")
    return content


def _values(path: Path) -> dict[str, Any]:
    """Plain values by name, or Terraform's outputs, whose value lies a level deeper."""
    found = _mapping(path, "file of values")
    return {
        name: each["value"] if isinstance(each, dict) and "value" in each else each
        for name, each in found.items()
    }


def _value(given: Mapping[str, Any], missing: list[str], secret: bool, name: str) -> Any:
    found = os.environ.get(name) if secret else given.get(name)
    if found is None:
        missing.append(f"env:{name}" if secret else name)
    return found


def _filled(node: Any, value_of: Callable[[bool, str], Any]) -> Any:
    """A tree with its places filled: a text that is one place alone takes the value's own type."""
    if isinstance(node, dict):
        return {name: _filled(each, value_of) for name, each in node.items()}
    if isinstance(node, list):
        return [_filled(each, value_of) for each in node]
    if not isinstance(node, str):
        return node
    if whole := PLACE.fullmatch(node):
        found = value_of(bool(whole[1]), whole[2])
        return node if found is None else found

    def text(place: re.Match[str]) -> str:
        found = value_of(bool(place[1]), place[2])
        if found is None:
            return place[0]
        return found if isinstance(found, str) else json.dumps(found)

    return PLACE.sub(text, node)


def _first(error: ValidationError) -> str:
    found = error.errors(include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else str(found["msg"])
