"""Reading settings from a YAML file, with overrides; the first problem is one line.

Unknown keys are refused with the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bipline.base.errors import InvalidInput
from bipline.settings.base import Settings
from bipline.settings.compress import CompressSettings
from bipline.settings.named_protocol import expand_protocol
from bipline.settings.placeholders import check_plain, filled, model_name
from bipline.settings.recipes import RECIPES
from bipline.settings.sweep import SweepSettings
from bipline.settings.watch import WatchSettings
from bipline.settings.yaml_reading import LARGEST_TEXT, read_yaml

KINDS: dict[str, type[Settings]] = {
    "compress": CompressSettings, "sweep": SweepSettings, "watch": WatchSettings,
}  # fmt: skip
Configuration = TypeVar("Configuration", bound=BaseModel)
# What stands for a model's name in the values of a configuration.
NAME = "{name}"
# Fields whose flag has another name than they have.
FLAGS = {"evaluate.protocol.seqlen": "evaluation_seqlen"}


def load(kind: type[Configuration], path: Path, overrides: tuple[str, ...] = ()) -> Configuration:
    """Read a YAML file and apply ``section.field=value`` overrides (values are YAML too).

    Raises InvalidInput, in one line, naming the key, the value and what is allowed.
    """
    return _validated(kind, _values(path, overrides), path)


def load_each(
    path: Path, overrides: tuple[str, ...] = (), models: tuple[str, ...] = ()
) -> tuple[CompressSettings, ...]:
    """The runs that one configuration asks for: one, or one for each of its models.

    ``models`` stand in place of those that the file names. Each run has its model, and the model's
    name where ``promote.name`` and ``state`` hold ``{name}``. Raises InvalidInput as :func:`load`,
    for a model that stands twice, and where two would be registered under one name.
    """
    values = _values(path, overrides)
    listed = values.pop("models", None) or []
    if listed and "model" in values and not models:
        raise InvalidInput(f"{path}: model and models: give one of them")
    if not (isinstance(listed, list) and all(isinstance(each, str) for each in listed)):
        raise InvalidInput(f"{path}: models = {json.dumps(listed)}: give a list of models")
    named = models or tuple(listed)
    runs = [_validated(CompressSettings, _for_model(values, each), path) for each in named]
    if not named:
        runs = [_validated(CompressSettings, _for_model(values, values.get("model")), path)]
    _check_apart(runs)
    return tuple(runs)


def _for_model(values: dict[str, Any], model: Any) -> dict[str, Any]:
    """A configuration's values for one model, with its name where they leave it open."""
    if not isinstance(model, str):
        return values
    made = {**values, "model": model}
    if isinstance(values.get("promote"), dict):
        made["promote"] = dict(values["promote"])
    for section, key in ((made, "state"), (made.get("promote"), "name")):
        text = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(text, str) and NAME in text:
            check_plain(name := model_name(model))
            section[key] = filled(text, {"name": name})
    return made


def _check_apart(runs: list[CompressSettings]) -> None:
    """Raise InvalidInput where one model stands twice, or two have one registered name."""
    counted = Counter(each.model for each in runs)
    if twice := next((model for model, count in counted.items() if count > 1), None):
        raise InvalidInput(f"models: {twice} stands twice")
    by_name: dict[str, str] = {}
    for each in runs:
        other = by_name.setdefault(each.promote.name, each.model)
        if other != each.model:
            raise InvalidInput(
                f"models: {other} and {each.model} would both be registered as "
                f"{each.promote.name!r}; write promote.name with {NAME}, such as '{NAME}-pruned', "
                "and give models whose names differ"
            )


def _values(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """What a file holds, with overrides."""
    values = _read_yaml(path)
    for override in overrides:
        _override(values, override)
    return values


def _validated(kind: type[Configuration], values: dict[str, Any], path: Path) -> Configuration:
    try:
        if kind in KINDS.values():
            values = expand_protocol(values)
        # Through JSON, because YAML gives lists and strict mode wants tuples.
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise InvalidInput(f"{path}: {_first_problem(error, kind)}") from None
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: not a configuration: {error}") from None


def validated(kind: type[Configuration], values: Mapping[str, Any]) -> Configuration:
    """Settings from flags or keywords. Raises InvalidInput, naming the flag and its value."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] in ("extra_forbidden", "value_error", "missing"):
            raise InvalidInput(_first_problem(error, kind)) from None
        names = [part for part in problem["loc"] if isinstance(part, str)]
        flag = FLAGS.get(".".join(names), names[-1] if names else "").replace("_", "-")
        raise InvalidInput(f"--{flag} {problem['input']!r}: {problem['msg'].lower()}") from None


def placed(settings: Configuration, state: Path | str | None, stack: str | None) -> Configuration:
    """The settings with where they run, as far as it is given.

    Raises InvalidInput where both a folder and a stack are meant.
    """
    given = {"state": state and str(state), "stack": stack}
    given = {name: value for name, value in given.items() if value is not None}
    return validated(type(settings), {**dict(settings), **given}) if given else settings


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(_content(path).decode("utf-8-sig"))
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such configuration file") from None
    except IsADirectoryError:
        raise InvalidInput(f"{path}: is a directory, not a configuration file") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{path}: not a mapping of sections")
    return values


def _content(path: Path) -> bytes:
    """A file's bytes, or one more than are read. A pipe by name may never have a writer."""
    if path.is_fifo() and path.resolve().exists():
        raise InvalidInput("is a pipe, not a configuration file")
    with path.open("rb") as file:
        return file.read(4 * LARGEST_TEXT + 1)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or not key.isprintable():
        raise InvalidInput(f"--set {override!r}: write section.field=value")
    *sections, field = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InvalidInput(f"--set {override!r}: {section} is a value, not a section")
    try:
        values[field] = read_yaml(text)
    except InvalidInput as error:
        raise InvalidInput(f"--set {override!r}: {error}") from None


def _first_problem(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    # Of several recipes the one that was meant is among the parts, and no key of the file.
    where = ".".join(str(part) for part in problem["loc"] if part not in RECIPES)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_nearest(problem, kind)}"
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"the key {where!r} is required"
    return f"{where} = {json.dumps(problem['input'])}: {problem['msg'].lower()}"


def _nearest(problem: ErrorDetails, section: type[BaseModel]) -> str:
    *path, key = (str(part) for part in problem["loc"])
    for part in path:
        annotation = section.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    close = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.4)
    known = ", ".join(section.model_fields)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {known}"


def schema_of(pipeline: str) -> dict[str, Any]:
    """The JSON schema of a pipeline's settings. Raises InvalidInput for another name."""
    if pipeline not in KINDS:
        raise InvalidInput(f"{pipeline!r} has no configuration; known: {', '.join(KINDS)}")
    return KINDS[pipeline].model_json_schema()
