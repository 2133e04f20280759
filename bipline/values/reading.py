"""Reading typed values back from JSON files, with the first problem in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bipline.base.errors import InvalidInput

Value = TypeVar("Value", bound=BaseModel)


def read_value(path: Path, value_type: type[Value], name: str) -> Value:
    """Read a value; ``name`` is what messages call it, such as "pruning plan".

    Raises InvalidInput when the file is missing or holds something else.
    """
    try:
        return value_type.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such {name} file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidInput(f"{path}: not a {name}: {where}: {first['msg']}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not a {name}: it is not UTF-8 text") from None
