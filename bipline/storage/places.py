"""Places that a user names, compared with each other and with what exists, before any work.

A result must not lie in what is only read, in another result, or in a folder that goes when the
work is done; it must not replace a device, a link, or a file that is no earlier result. Each of
these is seen here at the start, not after an hour.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from pathlib import Path

from bipline.base.errors import InvalidInput

LONGEST_NAME = 255
# Of an operating system's 4,096 the rest is for what lies below.
LONGEST_PATH = 3000
# What bipline keeps in a state folder.
STATE_ROOMS = ("downloads", "logs", "mlflow", "store", "zenml")
PARTIAL = ".partial"
# With one slash too: a path has no two in a row.
ADDRESS = re.compile(r"[A-Za-z][\w+.-]*:/|hf:|models:")


def is_elsewhere(source: str) -> bool:
    """Whether a source that is read names a hub, a bucket or a registry, and no path."""
    return "://" in source or source.startswith(("hf:", "models:/"))


class Use(Enum):
    """What becomes of a place."""

    READ_FILE = "is read"
    READ_FOLDER = "is read as a whole"
    WORK = "is emptied when the work is done"
    FOLDER = "is a folder written whole"
    KEPT = "is a folder of bipline's own"
    FILE = "is a file written"
    STATE = "holds logs and state"

    @property
    def written(self) -> bool:
        """Whether a result comes to lie there."""
        return self in (Use.WORK, Use.FOLDER, Use.KEPT, Use.FILE)


READ = (Use.READ_FILE, Use.READ_FOLDER)


@dataclass(frozen=True)
class Place:
    """A path as a user named it: under which flag, and for what.

    ``is_earlier`` tells a file that an earlier run of the same command wrote, which may be
    replaced.
    """

    flag: str
    path: Path
    use: Use
    is_earlier: Callable[[Path], bool] | None = None

    @property
    def real(self) -> Path:
        """Where it lies once every link on the way is followed."""
        return Path(os.path.realpath(self.path))

    def __str__(self) -> str:
        return f"{self.flag} {self.path}"


def check_places(places: Iterable[Place]) -> None:
    """Raise InvalidInput where places of one command cannot all be what they are named for."""
    named = list(places)
    for place in named:
        _check_name(place)
        if place.use in (Use.WORK, Use.FOLDER, Use.KEPT):
            _check_folder(place)
        if place.use is Use.STATE:
            _check_state_folder(place)
    for one, other in combinations(named, 2):
        for a, b in ((one, other), (other, one)):
            if a.use.written:
                (_check_state if b.use is Use.STATE else _check_apart)(a, b)
    for place in named:
        if place.use.written:
            _check_target(place)
        if place.use is Use.FILE:
            _check_file(place)


def _check_name(place: Place) -> None:
    if "\0" in str(place.path):
        raise InvalidInput(f"{place.flag} {str(place.path)!r}: a name cannot hold a NUL")
    if (address := ADDRESS.match(str(place.path))) and place.use not in READ:
        raise InvalidInput(
            f"{place.flag}: {address.group()} begins an address, and is written on this machine's "
            "disk; give a path"
        )
    longest = LONGEST_NAME - len(f".{PARTIAL}") * place.use.written
    if any(len(os.fsencode(part)) > longest for part in place.path.parts):
        raise InvalidInput(f"{place.flag}: a name longer than {longest} bytes")
    whole = os.fsencode(place.path.absolute())
    if len(whole) > LONGEST_PATH:
        raise InvalidInput(f"{place.flag}: a path longer than {LONGEST_PATH:,} bytes")
    try:
        whole.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(
            f"{place.flag} {str(place.path)!a}: the path is not UTF-8, as records and weights "
            "need it; rename it"
        ) from None


def _check_state_folder(place: Place) -> None:
    if os.path.lexists(place.path) and not place.path.is_dir():
        raise InvalidInput(f"{place}: is no folder")
    for above in (place.real, *place.real.parents):
        if (above / "config.json").exists() and any(above.glob("*.safetensors")):
            raise InvalidInput(
                f"{place}: {above} is a model's folder; logs and state do not go there, "
                f"so give another {place.flag}"
            )


def _check_target(place: Place) -> None:
    """What exists there, and what is above it."""
    path = place.path
    if path.is_symlink():
        raise InvalidInput(f"{place}: is a link; name what it points to, or another place")
    if path.name.startswith(".") and path.name.endswith(PARTIAL):
        raise InvalidInput(f"{place}: names of this shape are used while results are written")
    if not path.name:
        raise InvalidInput(f"{place}: is no name for a result; write {place.flag} {path}/NAME")
    above = place.real.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise InvalidInput(f"{place}: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InvalidInput(f"{place}: nothing may be written in {above}")
    _check_temporary(place)


def _check_temporary(place: Place) -> None:
    """What stands under the name that the result has while it is written."""
    temporary = place.path.with_name(f".{place.path.name}{PARTIAL}")
    is_folder = temporary.is_dir() and not temporary.is_symlink()
    if place.use is Use.FILE and is_folder:
        raise InvalidInput(f"{temporary}: is a folder where {place} is to be written; remove it")
    if place.use is Use.FOLDER and os.path.lexists(temporary) and not is_folder:
        raise InvalidInput(f"{temporary}: is a link or a file; remove it")


def _check_replaceable(place: Place) -> None:
    """A folder appears by one rename, so nothing may stand in its name that cannot go."""
    path = place.path
    what = "the folder this command runs in" if Path.cwd().is_relative_to(place.real) else None
    what = what or ("a mount point" if path.is_mount() else None)
    if what:
        raise InvalidInput(
            f"{place}: is {what}, which cannot be replaced; write {place.flag} {path / 'NAME'}"
        )


def _check_folder(place: Place) -> None:
    if place.use is Use.FOLDER:
        _check_replaceable(place)
    if place.path.exists() and not place.path.is_dir():
        raise InvalidInput(f"{place}: the output exists and is not a directory")


def _check_file(place: Place) -> None:
    path = place.path
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"{place}: its folder does not exist")
    if path.is_dir():
        raise InvalidInput(f"{place}: is a folder; name a file in it")
    if not path.exists():
        return
    if not stat.S_ISREG(path.stat().st_mode):
        raise InvalidInput(f"{place}: is no plain file, and would be replaced by one")
    if place.is_earlier is None or not place.is_earlier(path):
        raise InvalidInput(
            f"{place}: exists and is no earlier result of this command; it is not written over"
        )


def _check_apart(result: Place, other: Place) -> None:
    """A result neither is, nor lies in, nor holds another place."""
    mine, its = result.real, other.real
    if mine == its:
        raise InvalidInput(f"{result} and {other} are the same place")
    # A Store holds models and statistics that are read from it.
    reads = result.use is Use.KEPT and not other.use.written
    if result.use is not Use.FILE and its.is_relative_to(mine) and not reads:
        raise InvalidInput(f"{other} lies in {result}, which {result.use.value}")
    whole = (Use.READ_FOLDER, Use.FOLDER, Use.KEPT, Use.WORK)
    if other.use in whole and mine.is_relative_to(its):
        raise InvalidInput(f"{result} lies in {other}, which {other.use.value}")


def _check_state(result: Place, state: Place) -> None:
    """Results may lie in the state folder, but neither hold it nor lie in bipline's own rooms."""
    mine, its = result.real, state.real
    if mine == its or (result.use is not Use.FILE and its.is_relative_to(mine)):
        raise InvalidInput(f"{result} holds {state}, which {state.use.value}")
    if result.use is Use.KEPT:
        return  # a Store that the pipelines of this state folder share
    for room in STATE_ROOMS:
        if mine.is_relative_to(its / room):
            raise InvalidInput(f"{result} lies in {its / room}, where bipline keeps its state")
