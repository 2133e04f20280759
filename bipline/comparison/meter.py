"""A meter: what a stage took, in seconds and in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bipline.model.memory import PeakMemory, watching_memory
from bipline.values.comparison import Cost


class Meter:
    """Seconds of the stages that were run under it, and the highest memory of the process."""

    def __init__(self, peak: PeakMemory) -> None:
        self._peak = peak
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under this name."""
        start = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - start, 3)

    def cost(self, sums_from: str | None = None) -> Cost:
        """What was used so far."""
        self._peak.sample()
        return Cost(
            seconds=self._seconds,
            peak_anonymous_bytes=self._peak.anonymous,
            peak_device_bytes=self._peak.device,
            sums_from=sums_from,
        )


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter for the length of the block."""
    with watching_memory() as peak:
        yield Meter(peak)
