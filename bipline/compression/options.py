"""Options of criteria and of allocations: the papers' knobs as strict, frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from bipline.base.errors import InvalidInput


class BaseOptions(BaseModel):
    """What a criterion or an allocation may be told. ``seed`` is for what is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = 0

    def to_json_value(self) -> dict[str, Any]:
        """The options as they are recorded."""
        return self.model_dump(mode="json")


def _split(value: Any) -> Any:
    """A list as users write it: 0,0.5,1."""
    return value.split(",") if isinstance(value, str) else value


def _positive(value: tuple[float, ...]) -> tuple[float, ...]:
    if not value or min(value) <= 0 or max(value) > MOST_NUMBER:
        raise ValueError(f"must be positive numbers of at most {MOST_NUMBER:g}")
    return value


# Far more, times what it is a share of, would leave float32.
MOST_NUMBER = 1e6
PositiveNumber = Annotated[float, Field(gt=0, le=MOST_NUMBER)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split)]
PositiveNumbers = Annotated[Numbers, AfterValidator(_positive)]

Kind = TypeVar("Kind", bound=BaseOptions)


def options_from(kind: type[Kind], owner: str, seed: int, given: Mapping[str, Any] | None) -> Kind:
    """Options of a kind from what the user gave, published defaults for the rest.

    Raises InvalidInput, naming the owner and the option, for one that does not exist or cannot
    have this value.
    """
    try:
        return kind.model_validate({"seed": seed, **(given or {})})
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        known = ", ".join(field for field in kind.model_fields if field != "seed") or "none"
        if problem["type"] == "extra_forbidden":
            raise InvalidInput(f"{owner} has no option {name!r}; its options: {known}") from None
        raise InvalidInput(
            f"{owner}: option {name}={problem['input']}: {problem['msg'].lower()}"
        ) from None
