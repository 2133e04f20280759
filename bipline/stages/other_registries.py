"""The registries beside the one that a run tells: the package goes there too, each for itself.

Each has its own versions, its own journal and its own champion, so its gate is asked apart. One
that fails hides no other: what came of each is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from bipline.base.errors import BY_EXIT_CODE, BiplineError, InvalidInput
from bipline.base.progress import note
from bipline.delivery.registries.addresses import open_place
from bipline.delivery.registries.promotion import Gate, GateRefused, promote_version
from bipline.values.promotion import OtherRegistry


def check_others(addresses: Sequence[str], name: str, alias: str) -> None:
    """Ask each whether it is there and may be written to, before any work.

    Raises InvalidInput or EnvironmentFailure, for the first that is not.
    """
    if len(set(addresses)) < len(addresses):
        raise InvalidInput(f"promote.also {', '.join(addresses)}: one stands twice")
    places = [open_place(name, address) for address in addresses]
    for place in places:
        place.check_alias(alias)
        place.check_ready()


def promote_in_others(
    addresses: Iterable[str],
    name: str,
    package: Path,
    evaluated_at: datetime | None,
    alias: str,
    gate: Gate | None,
) -> tuple[OtherRegistry, ...]:
    """Put a package into each registry; with a gate, give it the alias there. Nothing is raised."""
    return tuple(
        _promote_in(address, name, package, evaluated_at, alias, gate) for address in addresses
    )


def _promote_in(
    address: str,
    name: str,
    package: Path,
    evaluated_at: datetime | None,
    alias: str,
    gate: Gate | None,
) -> OtherRegistry:
    told = OtherRegistry(address=address)
    try:
        place = open_place(name, address)
        version = place.put(package, evaluated_at)
        told = told.model_copy(update={"version": version.number, "location": version.location})
        if gate is None:
            return told
        promotion = promote_version(place, version, alias, gate, place.evidence(version))
    except BiplineError as error:
        note(f"{address}: {error}")
        verdict = error.verdict if isinstance(error, GateRefused) else None
        failed = {"error": str(error), "exit_code": error.exit_code, "verdict": verdict}
        return told.model_copy(update=failed)
    note(f"{address}: {promotion}")
    return told.model_copy(update={"promotion": promotion})


def raise_first(others: Iterable[OtherRegistry]) -> None:
    """Raise what the first registry that failed came to, in one line with how many more did."""
    failed = [each for each in others if each.error is not None]
    if failed:
        more = f"; and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise BY_EXIT_CODE[failed[0].exit_code](f"{failed[0].address}: {failed[0].error}{more}")
