"""What tests of audits share: copies that may be changed, and what an audit said of them."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bipline.audits.audit import Request
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.storage.directory import write_text
from bipline.storage.manifest import list_files, read_manifest
from bipline.values.audit import Audit

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
