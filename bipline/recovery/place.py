"""Where a training runs, and how it ended: what callers hold without the Trainer's libraries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bipline.model.devices import CPU
from bipline.values.recovery import TrainingPoint


@dataclass(frozen=True)
class Trained:
    """How a training ended: ``reason`` is empty where it went well."""

    curve: tuple[TrainingPoint, ...]
    steps: int
    reason: str = ""
    best_step: int | None = None
    last_good: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where a training runs, and the private folder of its checkpoints."""

    folder: Path
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    rank: int = 0
    processes: int = 1


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What seeds the process's generators inside leaves the caller's as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
