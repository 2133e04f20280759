"""The folder of a comparison: results, kept models, and below ``work`` what a rerun goes on from.

One process works in it at a time. It stays when the work is done, so that a larger grid later
costs only what is new in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.storage.directory import environment_failure
from bipline.storage.local_store import LocalStore
from bipline.storage.locks import locked
from bipline.storage.manifest import MANIFEST_NAME

MARKER_NAME = ".bipline-comparison"
MODELS = "models"


@contextmanager
def comparison_folder(path: Path) -> Iterator[LocalStore]:
    """Hold the folder for the length of the block; the store of what is finished in it.

    Raises InvalidInput when another process holds it, or when it holds files that no comparison
    wrote. A new one in which nothing was finished goes again when the block fails.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with locked(path, f"{path}: another process is comparing into this folder"):
            _refuse_foreign(path)
            store = LocalStore(path / "work")
            try:
                yield store
            except BaseException:
                _remove_if_idle(path, store)
                raise
    except OSError as error:
        raise environment_failure(error) or error from None


def _remove_if_idle(path: Path, store: LocalStore) -> None:
    """Remove the folder where there is nothing in it but drawn windows."""
    own = {MARKER_NAME, store.root.name}
    finished = any(store.root.glob(f"evaluate/*/{MANIFEST_NAME}"))
    if not finished and {each.name for each in path.iterdir()} <= own:
        shutil.rmtree(path, ignore_errors=True)


def _refuse_foreign(path: Path) -> None:
    marker = path / MARKER_NAME
    if not marker.is_file():
        if any(path.iterdir()):
            raise InvalidInput(f"{path}: holds files that are no comparison; choose another folder")
        marker.touch()
