"""What all settings share: strict, frozen classes whose fields say what they are.

A field is written once. The YAML section, the command-line flag and the API's keyword take its
name, its default and its description from here, and the core is asked with the same class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, TypeAdapter

Scalar = str | int | float | bool


class Settings(BaseModel):
    """Base of all settings: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _bytes(value: Any) -> Any:
    """Bytes as a number, or with a unit: 2.5GB, 2GiB."""
    if not isinstance(value, str):
        return value
    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a size; write bytes, or 2.5GB or 2GiB") from None


def _count(value: Any) -> Any:
    """A count as a number, or with a unit: 100M, 1.2B."""
    if not isinstance(value, str):
        return value
    found = COUNT.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is not a count; write a whole number, or 100M or 1.2B")
    return round(Decimal(found[1]) * UNITS[found[2].upper()])


COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMBT]?)", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# What torch's, NumPy's and Python's generators all take.
SeedNumber = Annotated[int, Field(ge=0, lt=2**32)]
# As many as a file can have.
ByteCount = Annotated[int, BeforeValidator(_bytes), Field(ge=1, lt=2**63)]
ParameterCount = Annotated[int, BeforeValidator(_count), Field(ge=1, lt=2**63)]
# A method's own options, as its page in docs/methods lists them.
MethodOptions = dict[str, Scalar]


def key_values(pairs: list[str] | tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE pairs as a mapping. Raises ValueError for anything else."""
    split = [text.partition("=") for text in pairs]
    for key, equals, value in split:
        if not (key and equals and value):
            raise ValueError(f"option {key + equals + value!r}: write KEY=VALUE")
    return {key: value for key, _, value in split}


def tuples(value: Any) -> Any:
    """JSON's lists as tuples, however deep: strict settings take tuples alone."""
    if isinstance(value, Mapping):
        return {name: tuples(part) for name, part in value.items()}
    return tuple(tuples(part) for part in value) if isinstance(value, list) else value


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as text by dotted name: what a tracker takes as parameters."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
