"""What a state folder's Store holds, who points at it, and the removal of what nobody needs.

Pipeline runs point at what they made or found by its stage key, which their database keeps;
registered versions at what the run made that registered them, and at their package by its digest.
Unfinished work is what a killed run goes on from: it is listed, and never removed.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from bipline.base.errors import EnvironmentFailure, InvalidInput
from bipline.base.progress import track
from bipline.stages.inventory import entries_of, remove
from bipline.storage.local_store import NAME_DIGITS
from bipline.storage.locks import locked
from bipline.values.stored import Stored, StoredEntry

ROOT, DATABASE = "zenml/artifacts/bipline", "zenml/stores/default_zen_store/zenml.db"
# A cached step has the metadata of the one it repeats, so it points at the same directory.
POINTERS = """
SELECT run_metadata.value, pipeline_run.name, pipeline_run.status
FROM run_metadata
JOIN run_metadata_resource ON run_metadata_resource.run_metadata_id = run_metadata.id
JOIN step_run ON step_run.id = run_metadata_resource.resource_id
JOIN pipeline_run ON pipeline_run.id = step_run.pipeline_run_id
WHERE run_metadata.key = 'stage_key'
"""
ENDED = {"completed", "cached", "failed", "stopped"}


def root_of(state: Path) -> Path:
    """Where pipeline runs of a state folder keep their Store. Raises InvalidInput for none."""
    root = state / ROOT
    if not root.is_dir():
        raise InvalidInput(f"{state}: no Store of pipeline runs lies there; give its --state")
    return root


def stored(state: Path, registry: str | None) -> Stored:
    """What lies in the Store of a state folder; ``registry`` is where its versions are.

    Raises InvalidInput where there is none, EnvironmentFailure where a database cannot be read.
    """
    root = root_of(state)
    runs, versions = _runs(state / DATABASE), _versions(registry)
    entries = tuple(_told(entry, runs, versions) for entry in entries_of(root))
    return Stored(root=str(root), entries=entries)


def prune_stored(state: Path, registry: str | None, keep_registered: bool, dry_run: bool) -> Stored:
    """Remove what nobody points at; with ``keep_registered`` all but what versions came from.

    No run can begin meanwhile. Raises InvalidInput while one is in progress, and where
    ``keep_registered`` finds no version to keep.
    """
    root_of(state)
    with locked(state, f"{state}: a run is using this state folder; prune when it has ended"):
        found = stored(state, registry)
        if keep_registered and not any(entry.versions for entry in found.entries):
            raise InvalidInput(
                "--keep-registered: no registered version came from this Store, so nothing would "
                "be kept; name its --registry"
            )
        unfinished, since = _unfinished(state / DATABASE)
        going = [
            entry
            for entry in found.entries
            if entry.finished
            and not _needed(entry, keep_registered, unfinished)
            # A run that was killed as a stage ended has made what nothing points at yet.
            and not (since is not None and not entry.runs and entry.made >= since)
        ]
        if not dry_run:
            for entry in track(going, "remove"):
                remove(Path(found.root), entry)
    freed = sum(entry.own_bytes for entry in going)
    return found.model_copy(
        update={
            "removed": tuple(entry.name for entry in going),
            "freed_bytes": freed,
            "dry_run": dry_run,
        }
    )


def _needed(entry: StoredEntry, keep_registered: bool, unfinished: frozenset[str]) -> bool:
    """Whether a version, a run that has not ended, or, where they count, any run points at it."""
    if entry.versions or unfinished & set(entry.runs):
        return True
    return bool(entry.runs) and not keep_registered


def _told(
    entry: StoredEntry,
    runs: Mapping[str, Mapping[str, str]],
    versions: Mapping[str, list[tuple[str, str]]],
) -> StoredEntry:
    pointing = tuple(sorted(runs.get(entry.key, ())))
    by_run = [name for run in pointing for name, _ in versions.get(run, ())]
    by_digest = [name for told in versions.values() for name, of in told if of == entry.digest]
    names = tuple(dict.fromkeys([*by_run, *by_digest]))
    return entry.model_copy(update={"runs": pointing, "versions": names})


def _runs(database: Path) -> dict[str, dict[str, str]]:
    """By the start of a stage key: the pipeline runs that made or found it, with their status."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for value, name, status in _asked(database, POINTERS):
        found[str(json.loads(value))[:NAME_DIGITS]][name] = status
    return found


def _unfinished(database: Path) -> tuple[frozenset[str], datetime | None]:
    """Names of runs that have not ended, as a killed one may be gone on with; and since when.

    The time is that of the oldest of them, None where all have ended.
    """
    told = _asked(database, "SELECT name, status, created FROM pipeline_run")
    going = {name: created for name, status, created in told if status not in ENDED}
    times = [datetime.fromisoformat(str(each)).replace(tzinfo=UTC) for each in going.values()]
    return frozenset(going), min(times, default=None)


def _asked(database: Path, query: str) -> list[tuple[str, ...]]:
    """Rows of ZenML's database, which is only read. Where there is none, nothing is known to run.

    Raises EnvironmentFailure for one that cannot be read, or is made otherwise: without it
    nobody knows what is needed.
    """
    if not database.is_file():
        raise EnvironmentFailure(f"{database}: ZenML's database is not there; who needs what?")
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise EnvironmentFailure(f"{database}: cannot be read: {error}") from None


def _versions(registry: str | None) -> dict[str, list[tuple[str, str]]]:
    """By the pipeline run that registered it: a version's name with aliases, and its package."""
    if registry is None:
        return {}
    from bipline.delivery.registries.registered_runs import registered_runs

    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for version in registered_runs(registry):
        found[version.run].append((version.label, version.package_digest))
    return found
