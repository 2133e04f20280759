"""Measured models on disk: a package, or what ``bipline evaluate --json`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.delivery.evidence import EVALUATION, ITEMS, measured_of, record_of
from bipline.storage.manifest import MANIFEST_NAME, verify_directory
from bipline.storage.strict_json import read_json
from bipline.values.record import EvaluationRecord

WHAT = "a package (a folder, models:/, s3:// or hf:), or the JSON of bipline evaluate"


def read_measured(place: Path) -> EvaluationRecord:
    """The record of the model that a place tells of, with the items behind it.

    A package is hashed against its manifest first. Raises InvalidInput for anything else,
    Refused for a package that was changed.
    """
    if not place.is_dir():
        return _of_file(place)
    if not (place / MANIFEST_NAME).is_file():
        raise InvalidInput(f"{place}: holds no {EVALUATION}; give {WHAT}")
    verify_directory(place)
    return read_packaged(place)


def read_packaged(place: Path) -> EvaluationRecord:
    """As :func:`read_measured`, of a package whose bytes were hashed already."""
    if not (place / EVALUATION).is_file():
        raise InvalidInput(f"{place}: holds no {EVALUATION}; give {WHAT}")
    names = [name for name in (EVALUATION, ITEMS) if (place / name).is_file()]
    documents = {name: read_json(place / name, "document") for name in names}
    try:
        found = measured_of(documents, "packaged")
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{place / EVALUATION}: not the records of a package: {error}") from None
    return found.record.model_copy(update={"items": found.items})


def _of_file(place: Path) -> EvaluationRecord:
    value: dict[str, Any] = read_json(place, "record of an evaluation")
    fields = {name: part for name, part in value.items() if name in EvaluationRecord.model_fields}
    if not isinstance(fields.get("protocol"), dict) or "digest" not in fields["protocol"]:
        raise InvalidInput(f"{place}: holds no record; give {WHAT}")
    return record_of(fields, str(place))
