"""What tests of audits share: copies that may be changed, and what an audit said of them."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bipline.audits.audit import Request
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.storage.directory import write_text
from bipline.storage.manifest import list_files, read_manifest
from bipline.values.audit import Audit, Finding, Status

NAME = "audited"
# Where databases keep the place of what lies beside them.
PLACES = {
    "mlflow/mlflow.db": {"runs": "artifact_uri", "experiments": "artifact_location",
                         "logged_models": "artifact_location"},
    "zenml/stores/default_zen_store/zenml.db": {"artifact_version": "uri"},
}  # fmt: skip
ZENML, MLFLOW = "zenml/stores/default_zen_store/zenml.db", "mlflow/mlflow.db"


def about(found: Audit, *status: str) -> set[str]:
    return {each.about for each in found.findings if each.status in status}


def said(found: Audit, question: str) -> str:
    """What an audit said of a question, all of it."""
    return "\n".join(each.said for each in found.findings if each.about == question)


def request(package: Path, **more: Any) -> Request:
    return Request(str(package), downloads=package.parent / "downloads", **more)


def served_request(state: Path, **more: Any) -> Request:
    return Request(f"models:/{NAME}@candidate", registry=tracking_uri(state),
                   downloads=state.parent / "downloads", **more)  # fmt: skip


def copied(package: Path, target: Path) -> Path:
    """A copy with files that may be written to, as those of a Store may not."""
    return Path(shutil.copytree(package, target, copy_function=_copy))


def _copy(source: str, target: str) -> str:
    shutil.copyfile(source, target)
    return target


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path) -> None:
    """List the files again, as somebody would who changed one and hides it."""
    manifest = read_manifest(folder)
    files = list_files(folder)
    write_text(folder / "manifest.json", manifest.model_copy(update={"files": files}).to_json())


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copied_state(state: Path, target: Path, rooms: tuple[str, ...] = ("mlflow", "zenml")) -> Path:
    """A state folder's databases and artifacts beside them, as if they had always been there."""
    for room in rooms:
        shutil.copytree(state / room, target / room, symlinks=True)
    forget_places()
    for config in (target / "zenml" / "config").glob("config.yaml"):  # names its database
        config.write_text(config.read_text().replace(str(state), str(target)))
    for database, tables in PLACES.items():
        if database.partition("/")[0] in rooms:
            for table, column in tables.items():
                change = f"UPDATE {table} SET {column} = REPLACE({column}, ?, ?)"
                execute(target / database, change, str(state), str(target))
    if "zenml" in rooms:
        _move_components(target / ZENML, str(state), str(target))
    return target


def forget_places() -> None:
    """MLflow remembers by a run's id where its files lie; a copy's run has the same id."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


def _move_components(database: Path, before: str, after: str) -> None:
    """The stack's components, whose settings ZenML keeps encoded."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for number, kept in connection.execute("SELECT id, configuration FROM stack_component"):
            moved = base64.b64decode(kept).decode().replace(before, after)
            connection.execute(
                "UPDATE stack_component SET configuration = ? WHERE id = ?",
                (base64.b64encode(moved.encode()), number),
            )


def execute(database: Path, change: str, *values: Any) -> int:
    """Edit a database behind its owner's back; how many rows that changed."""
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(change, values).rowcount


def file_of_version(state: Path, pattern: str) -> Path:
    """The one stored file of the audited version or its run; those of other runs lie beside it."""
    asked = (
        "SELECT m.model_id, m.source_run_id FROM logged_models m JOIN model_versions v "
        "ON v.source = 'models:/' || m.model_id WHERE v.name = ?"
    )
    with closing(sqlite3.connect(state / MLFLOW)) as connection:
        owners = set(connection.execute(asked, (NAME,)).fetchone())
    [found] = [path for path in (state / "mlflow").rglob(pattern.rpartition("/")[2])
               if path.match(pattern) and owners & set(path.parts)]  # fmt: skip
    return found


@contextmanager
def edited(database: Path, *changes: tuple[str, tuple[Any, ...]]) -> Iterator[None]:
    """Edits of a database that are taken back afterwards; each must change something."""
    kept = sqlite3.connect(":memory:")
    with closing(sqlite3.connect(database)) as connection:
        connection.backup(kept)
    try:
        for change, values in changes:
            assert execute(database, change, *values), change
        yield
    finally:
        # Through SQLite: whoever has it open would not see that a file was replaced.
        with closing(sqlite3.connect(database)) as connection:
            kept.backup(connection)
        kept.close()


def sample_audit() -> Audit:
    """An audit with every kind of answer about every step, long texts and names from outside."""
    digest, letters = "9f0b" * 16, "W&<b>"
    answers: list[tuple[str, Status, str]] = [
        ("trust", "holds", "release team (release.pub, sha256 12ab34cd56ef): counts for package"),
        ("registry's copy", "holds", "version 3 of small: every stored file hashed again"),
        ("version's tags", "differs", f"plan_digest says {digest}, the package {digest}"),
        ("journal", "holds", "entry 1: promote to production; gate passed, verdict 12ab34cd56ef"),
        ("who promoted", "unknown", f"user root moved production; {letters * 30!r} was typed"),
        ("bytes", "holds", f"14 files, 61.2 MB, all as listed; digest {digest}"),
        ("signature", "unknown", "unsigned"),
        ("dense model", "holds", f"acme/{letters * 20} at {digest[:40]}; licence apache-2.0"),
        ("text calibration", "unknown", "calibration.txt, sha256 12ab34cd56ef"),
        ("plan", "holds", "digest abcdefabcdef, of tensors 0123456789ab"),
        ("evaluation of dense", "holds", "perplexity held-out 18.21; protocol house, 12ab34cd56ef"),
        ("ZenML run", "differs", "ZenML knows no run compress-20261128T161552-186219Z"),
        ("run", "unknown", "compress-1 on build-7, 2026-11-28 16:00 to 16:10; commit 12ab34cd56ef"),
    ]
    findings = tuple(
        Finding(about=question, status=status, said=told,
                consequence=None if status == "holds" else "what it says is not to be relied on")
        for question, status, told in answers
    )  # fmt: skip
    at = datetime(2026, 11, 28, 16, tzinfo=UTC)
    return Audit(source=f"models:/{letters * 9}@production", package_digest=digest,
                 audited_at=at, findings=findings)  # fmt: skip
