"""Answers as findings: a check that refuses differs, with the reason that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from bipline.base.errors import InvalidInput, Refused
from bipline.values.audit import Finding, Status

ORDER: tuple[Status, ...] = ("differs", "unknown", "holds")
NOT_TRUSTED = "what the package says of itself is not to be relied on"


def answered(
    about: str, check: Callable[[], Iterable[Finding]], consequence: str = NOT_TRUSTED
) -> Iterator[Finding]:
    """What a check finds; where it refuses, or cannot read what it checks, that it differs."""
    try:
        yield from check()
    except (Refused, InvalidInput) as error:
        yield differs(about, str(error), consequence)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # What is read was written by others: a field that is missing is a difference too.
        reason = " ".join(str(error).split())
        yield differs(about, f"cannot be read: {type(error).__name__}: {reason:.200}", consequence)


def holds(about: str, said: str) -> Finding:
    """It is as something else says too."""
    return Finding(about=about, status="holds", said=said)


def differs(about: str, said: str, consequence: str = NOT_TRUSTED) -> Finding:
    """Two places say different things."""
    return Finding(about=about, status="differs", said=said, consequence=consequence)


def unknown(about: str, said: str, consequence: str) -> Finding:
    """Nothing here can tell."""
    return Finding(about=about, status="unknown", said=said, consequence=consequence)


def compared(about: str, said: str, pairs: dict[str, tuple[object, object]]) -> Finding:
    """Holds where each named pair is equal, else differs with the first that is not."""
    for name, (one, other) in pairs.items():
        if one != other:
            return differs(
                about, f"{name}: {short(one)} in one place and {short(other)} in another"
            )
    return holds(about, said)


def worst(findings: Iterable[Finding]) -> Status:
    """What differs before what cannot be known, and that before what holds."""
    found = {each.status for each in findings}
    return next((each for each in ORDER if each in found), "holds")


def listed(changes: Sequence[str]) -> str:
    """The first of what changed, and how many more."""
    more = f"; and {len(changes) - 1} more" if len(changes) > 1 else ""
    return f"{changes[0]}{more}"


def short(value: object) -> str:
    """A digest by its first digits, anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
