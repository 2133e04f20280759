"""What a folder of the user's gives lies in that folder: links that leave it are refused.

A model that is downloaded and passed on may hold ``LICENSE -> ~/.aws/credentials``; copied, it
would be published. The one exception is the hub's cache, whose snapshots are links to blobs.
Hard links cannot be told from files, and are files.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bipline.base.errors import InvalidInput

# Folders inside a model directory that belong to the model.
INNER_FOLDERS = ("additional_chat_templates",)
SNAPSHOTS, BLOBS = "snapshots", "blobs"


def contained_files(folder: Path) -> list[str]:
    """Names of the files of a folder and of its inner folders, sorted.

    Raises InvalidInput for a link that leaves the folder, leads nowhere or in circles, for what
    is neither a file nor a folder, and for a file whose name no listing could show.
    """
    roots, names = _roots(folder), []
    for path in (folder, *(folder / inner for inner in INNER_FOLDERS)):
        if path is folder or os.path.lexists(path):
            names += [each.relative_to(folder).as_posix() for each in _files(path, folder, roots)]
    return sorted(names)


def _files(path: Path, folder: Path, roots: list[Path]) -> list[Path]:
    if path is not folder and _kind(path, roots) != stat.S_IFDIR:
        return []
    files = [each for each in path.iterdir() if _kind(each, roots) == stat.S_IFREG]
    for each in files:
        if not _showable(each.name):
            raise InvalidInput(f"{path}: the name {each.name!r} holds signs that cannot be shown")
    return files


def _showable(name: str) -> bool:
    return not any(
        sign < " " or "\x7f" <= sign < "\xa0" or "\ud800" <= sign < "\ue000" for sign in name
    )


def _kind(path: Path, roots: list[Path]) -> int:
    """S_IFREG or S_IFDIR of what lies at a path."""
    try:
        if path.is_symlink():
            _refuse_outside(path, path.resolve(strict=True), roots)
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise InvalidInput(
            f"{path}: a link that leads nowhere or in circles, or a file that cannot be looked "
            f"at ({getattr(error, 'strerror', None) or 'a circle'}); remove it"
        ) from None
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InvalidInput(f"{path}: a pipe, socket or device, not a plain file; remove it")
    return kind


def open_plain(path: Path) -> int:
    """A descriptor of a plain file. Raises InvalidInput for anything else, and never waits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput(f"{path}: not a plain file")
    return descriptor


def check_contained(descriptor: int, folder: Path, name: str) -> None:
    """Raise InvalidInput unless the file that was opened lies in ``folder``, whatever led to it."""
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    # A file that was removed since has no place any more, so nothing can be said of it.
    if os.fstat(descriptor).st_nlink:
        _refuse_outside(folder / name, path, _roots(folder))


def _roots(folder: Path) -> list[Path]:
    """Where files of a folder may lie: in it, or among the blobs of the hub's cache around it."""
    root = folder.resolve()
    blobs = root.parent.parent / BLOBS
    cached = root.parent.name == SNAPSHOTS and not blobs.is_symlink() and blobs.is_dir()
    return [root, blobs] if cached else [root]


def _refuse_outside(path: Path, target: Path, roots: list[Path]) -> None:
    if not any(target.is_relative_to(root) for root in roots):
        raise InvalidInput(
            f"{path}: a link to {target}, outside of the model's directory; replace it by the file"
        )
