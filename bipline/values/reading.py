"""Reading typed values back from JSON files, with the first problem in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bipline.base.errors import InvalidInput
from bipline.storage.strict_json import read_json

Value = TypeVar("Value", bound=BaseModel)


def read_value(path: Path, value_type: type[Value], name: str, remedy: str = "") -> Value:
    """Read a value; ``name`` is what messages call it, such as "pruning plan".

    Raises InvalidInput when the file is missing or holds something else.
    """
    return typed(read_json(path, name, remedy), value_type, str(path), name, remedy)


def typed(
    value: dict[str, Any], value_type: type[Value], where: str, name: str, remedy: str = ""
) -> Value:
    """A JSON object as a value; raises InvalidInput naming the first field that does not fit."""
    try:
        # From text: what JSON cannot tell apart, such as tuples and lists, is then no difference.
        return value_type.model_validate_json(json.dumps(value, allow_nan=False))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        then = f"; {remedy}" if remedy else ""
        raise InvalidInput(f"{where}: not a {name}: {field}: {first['msg']}{then}") from None
    except ValueError as error:
        raise InvalidInput(f"{where}: not a {name}: {error}") from None
