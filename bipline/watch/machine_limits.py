"""What a run needs of this machine: a place among those at once, its state folder, a free disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bipline.settings.watch import LimitSettings
from bipline.storage.digests import digest_json
from bipline.storage.locks import is_locked
from bipline.watch.journal import Hold, LocalHolds
from bipline.watch.launcher import Run

GIGA = 10**9


@dataclass(frozen=True)
class Hindrance:
    """Why a run cannot start now; ``whole`` is whether no other run can either."""

    reason: str
    whole: bool


class MachineLimits:
    """The limits of all watchers that share a state folder: their holds end with the runs."""

    def __init__(
        self, folder: Path, limits: LimitSettings, free: Callable[[Path], int] | None = None
    ) -> None:
        self._folder, self._limits = folder, limits
        self._holds = LocalHolds(folder / "holds")
        self._free = free or free_bytes

    def take(self, run: Run) -> tuple[Hold, ...] | Hindrance:
        """The holds that a run needs here, or why it cannot start now."""
        if (free := self._free(self._folder)) < self._limits.disk_free:
            return Hindrance(
                f"{free / GIGA:.1f} GB are free on the disk of {self._folder}, limits.disk_free is "
                f"{self._limits.disk_free / GIGA:.1f} GB",
                whole=True,
            )
        slot = self._slot()
        if slot is None:
            reason = f"{self._limits.runs} of {self._limits.runs} runs are going on (limits.runs)"
            return Hindrance(reason, whole=True)
        if run.state is None:
            return (slot,)
        state = self._state(run.state)
        if state is None:
            slot.release()
            return Hindrance(f"another run is using the state folder {run.state}", whole=False)
        return slot, state

    def _slot(self) -> Hold | None:
        """The first place that is free among the runs at once."""
        names = (f"run-{number}" for number in range(1, self._limits.runs + 1))
        return next((slot for name in names if (slot := self._holds.take(name))), None)

    def _state(self, state: Path) -> Hold | None:
        """A state folder, in which one run works at a time: ours, or one that somebody typed."""
        hold = self._holds.take(f"state-{digest_json(str(state.absolute()))[:32]}")
        if hold is not None and state.is_dir() and is_locked(state):
            hold.release()
            return None
        return hold


def free_bytes(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
