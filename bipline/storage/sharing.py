"""One copy on the disk of what lies in two places.

A reflink shares blocks until one side is written, so it is safe everywhere. A hard link is one
file under two names: it is made only between files that nobody writes, mode 0444, and a name that
may be one is removed, never opened for writing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path

# linux/fs.h: _IOW(0x94, 9, int)
FICLONE = 0x40049409
WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def cloned(source: Path, target: Path) -> bool:
    """Make ``target``, which is not there, a reflink of ``source``, if the file system can."""
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), FICLONE, read.fileno())
            return True
        except OSError:  # each file system says in its own way that it cannot
            target.unlink()
            return False


def linked(source: Path, target: Path) -> bool:
    """Make ``target``, which is not there, a hard link to ``source``, if nobody may write that."""
    status = source.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_mode & WRITABLE:
        return False
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True


def shared(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source`` in as few bytes as can be: else a copy of it."""
    target.unlink(missing_ok=True)
    if not (cloned(source, target) or linked(source, target)):
        unfinished = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, unfinished)
        unfinished.replace(target)
