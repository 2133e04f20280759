"""Keywords of the Python API as settings: the fields of the classes, by their bare names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.settings.base import key_values
from bipline.settings.line import LineSettings, sectioned
from bipline.settings.loading import validated
from bipline.settings.named_protocol import load_protocol
from bipline.settings.protocol import Protocol
from bipline.settings.sweep import ComparisonSettings, GridSettings
from bipline.storage.names import check_label
from bipline.storage.task_rows import task_place

Place = str | Path
Sources = Place | Sequence[Place] | Mapping[str, float]
NUMBERS = {"ratios": (float, "numbers"), "seeds": (int, "whole numbers")}
# Of the others the name is a field of calibrate or compute, or a named protocol's.
OF_PROTOCOL = Protocol.model_fields.keys() - {"seqlen", "dtype", "name", "version", "join"}
COMPARED = ("auto", "llm-bip-glu", "wanda-sp", "magnitude", "random")


def line_settings(
    model: Place, calibration: Sources | None, given: Mapping[str, Any]
) -> LineSettings:
    """The settings of ``prune`` from keywords. Raises InvalidInput, naming the keyword."""
    values = sectioned(given_values(given))
    weights = _weights(calibration)
    if weights:
        names = {source: f"calibration-{n}" for n, source in enumerate(weights, start=1)}
        values["texts"] = {name: source for source, name in names.items()}
        texts = {name: weights[source] for source, name in names.items()}
        values["calibrate"] = {**values.get("calibrate", {}), "texts": texts}
    return validated(LineSettings, {**values, "model": str(model)})


def comparison_settings(given: Mapping[str, Any]) -> ComparisonSettings:
    """The settings of ``compare`` from keywords. Raises InvalidInput, naming the keyword."""
    rest = given_values(given)
    grid = {
        name: parts_of(rest.pop(name), *NUMBERS.get(name, ()))
        for name in GridSettings.model_fields
        if name in rest
    }
    if not grid.get("criteria") and not grid.get("methods"):
        grid["criteria"] = COMPARED if grid.get("criteria") is None else ()
    protocol = {name: rest.pop(name) for name in rest.keys() & OF_PROTOCOL}
    protocol |= {"seqlen": rest.pop("evaluation_seqlen", None), "dtype": _named_dtype(rest)}
    values = sectioned(rest)
    protocol = {name: value for name, value in protocol.items() if value is not None}
    values |= {"grid": grid, "evaluate": {"protocol": protocol}}
    return validated(ComparisonSettings, values)


def _named_dtype(given: Mapping[str, Any]) -> Any:
    """What models are measured in: as was given, or the usual for what pruning alone settles."""
    return None if given.get("dtype") == "auto" else given.get("dtype")


def named_texts(texts: Mapping[str, Place] | None) -> dict[str, str]:
    """Evaluation texts by name. Raises InvalidInput for a name that no table can show."""
    if not isinstance(texts or {}, Mapping):
        raise InvalidInput(f"texts {texts!r}: give a mapping from names to files")
    for name in texts or {}:
        check_label(name, "--text")
    return {name: str(text) for name, text in (texts or {}).items()}


def task_names(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Tasks by name. Raises InvalidInput for one that is no file's name in --task-data."""
    names = parts_of(tasks or ())
    for name in names:
        check_label(name, "--tasks")
        if Path(name).name != name:
            raise InvalidInput(f"--tasks {name!r}: give the name of a file in --task-data")
    return names


@dataclass(frozen=True)
class Measurement:
    """What is measured and how: texts and tasks by name, with their sources."""

    protocol: Protocol
    texts: dict[str, str]
    tasks: dict[str, str]


def measurement(
    protocol: Place | None,
    texts: Mapping[str, Place] | None,
    tasks: str | Sequence[str],
    task_data: Place | None,
    settings: Mapping[str, Any],
) -> Measurement:
    """A named protocol, if any, with what is given in place of its own.

    Raises InvalidInput for no such protocol, and for names and values that cannot be.
    """
    sources, names, given = named_texts(texts), task_names(tasks), given_values(settings)
    own: dict[str, str] = {}
    if protocol is not None:
        named = load_protocol(str(protocol))
        sources, own = {**named.texts, **sources}, named.task_sources
        names, given = names or tuple(own), named.settings(given)
        note(f"protocol {given['name']}, version {named.version}")
    rows = {
        name: own[name] if name in own and task_data is None else task_source(name, task_data)
        for name in names
    }
    return Measurement(validated(Protocol, given), sources, rows)


def task_source(name: str, task_data: Place | None) -> str:
    """Where a task lies in a folder; without one lm-eval's own data set, on the hub."""
    return "hf:" if task_data is None else str(task_place(Path(task_data), name))


def parts_of(
    given: str | Sequence[Any], kind: type[Any] = str, what: str = "names"
) -> tuple[Any, ...]:
    """The parts of a list that is written with commas, blank ones left out; others as they are.

    Raises InvalidInput for what is not of the kind.
    """
    if not isinstance(given, str):
        if not isinstance(given, Iterable):
            raise InvalidInput(f"{given!r}: give {what}, as a list or separated by commas")
        return tuple(given)
    try:
        return tuple(kind(part.strip()) for part in given.split(",") if part.strip())
    except ValueError:
        raise InvalidInput(f"{given!r}: write {what}, separated by commas") from None


def _weights(calibration: Sources | None) -> dict[str, float]:
    """Sources with their weight in the mix: ``FILE,0.7``, or a mapping, or 1 each."""
    if calibration is None:
        return {}
    if isinstance(calibration, Mapping):
        return {str(source): float(weight) for source, weight in calibration.items()}
    if isinstance(calibration, (str, Path)):
        calibration = [calibration]
    weights = {}
    for text in map(str, calibration):
        source, comma, weight = text.rpartition(",")
        try:
            share = float(weight) if comma else None
        except ValueError:
            share = None
        weights[text if share is None else source] = 1.0 if share is None else share
    return weights


def given_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None; KEY=VALUE lists as mappings, lists as tuples.

    Raises InvalidInput for what is no pair.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            try:
                value = key_values(value) if name.endswith("_option") else tuple(value)
            except ValueError as error:
                raise InvalidInput(str(error)) from None
        if value is not None:
            found[name] = value
    return found
