"""``bipline store``: what lies in a state folder's Store, and the removal of what nobody needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bipline.base.addresses import without_secrets
from bipline.face import named_places, options
from bipline.face.models import STATE
from bipline.face.options import WHAT, option
from bipline.face.output import log_file, write_json

if TYPE_CHECKING:
    from bipline.values.stored import Stored, StoredEntry

Registry = Annotated[str | None, option("MLflow's address; left out, the state folder's own", WHAT)]


def list_(
    registry: Registry = None, json_file: options.JsonFile = None, state: options.State = STATE
) -> None:
    """What lies in the Store of pipeline runs: size, age, and who points at it."""
    from bipline.face.console import working
    from bipline.face.tables import print_lines
    from bipline.stages.storing import stored

    _check(json_file, state, "store list")
    with working(log_file(state, "store")) as console:
        found = stored(state, _address(registry, state))
        write_json(json_file, "store list", found.model_dump(mode="json"))
        told = _asked(registry, state)
        print_lines(console, [*map(_line, found.entries), _total(found), told])


def prune(
    keep_registered: Annotated[
        bool, option("runs alone do not count: keep what registered versions came from", WHAT)
    ] = False,
    registry: Registry = None,
    dry_run: options.DryRun = False,
    json_file: options.JsonFile = None,
    state: options.State = STATE,
) -> None:
    """Remove from the Store what no run and no registered version points at.

    Never while a run is in progress, and never unfinished work, which a killed run goes on from.
    """
    from bipline.face.console import working
    from bipline.face.tables import print_lines
    from bipline.stages.storing import prune_stored
    from bipline.values.figures import byte_size

    _check(json_file, state, "store prune")
    with working(log_file(state, "store")) as console:
        done = prune_stored(state, _address(registry, state), keep_registered, dry_run)
        write_json(json_file, "store prune", done.model_dump(mode="json"))
        going = [entry for entry in done.entries if entry.finished and entry.name in done.removed]
        verb = "would be removed" if dry_run else "removed"
        told = (
            f"{len(going):,} of {len(done.entries):,} {verb}, {byte_size(done.freed_bytes)} freed"
        )
        print_lines(console, [*map(_line, going), told, _asked(registry, state)])


def _check(json_file: Path | None, state: Path, command: str) -> None:
    from bipline.stages.storing import root_of

    named_places.check_registered(None, json_file=json_file, command=command, state=state)
    root_of(state)  # before a log would make the folder


def _address(registry: str | None, state: Path) -> str | None:
    """The registry that is named, else the state folder's where it has one."""
    from bipline.stages.promote import registry_address

    if registry is None and not (state / "mlflow" / "mlflow.db").is_file():
        return None
    return registry_address(registry, state, state)


def _asked(registry: str | None, state: Path) -> str:
    """Which registry's versions count here."""
    address = _address(registry, state)
    if address is None:
        return "no registry was asked: versions that point here would not be known; give --registry"
    return (
        f"versions are those of {without_secrets(address)}; what another registry's point at is "
        "not known"
    )


def _line(entry: StoredEntry) -> str:
    from bipline.values.figures import byte_size

    size = byte_size(entry.bytes)
    shared = f" ({byte_size(entry.own_bytes)} its own)" if entry.own_bytes != entry.bytes else ""
    who = ", ".join([*(f"version {each}" for each in entry.versions), *entry.runs])
    pointed = who or ("nobody" if entry.finished else "unfinished work")
    made = f"{entry.made:%Y-%m-%d %H:%M}"
    return f"{entry.stage:<18}{entry.key[:12]}  {size:>10}{shared}  {made}  {pointed}"


def _total(found: Stored) -> str:
    from bipline.values.figures import byte_size

    own = sum(entry.own_bytes for entry in found.entries)
    size = sum(entry.bytes for entry in found.entries)
    return f"{len(found.entries):,} entries, {byte_size(size)}, {byte_size(own)} of them unshared"
