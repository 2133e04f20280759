"""Forecast: the time and memory that making a smaller model takes, told before it starts.

The same estimates that a compress run tells of its steps, with one product of the model's own
measured on this machine for the rate, in processor time. So the time is what the machine takes that
does nothing else; what it takes at its present load is told beside it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.floor import Rates, usual_rates
from bipline.model.memory import gigabytes
from bipline.settings.line import LineSettings
from bipline.stages.step_needs import MEBIBYTE, MakingEstimates

# Measured: private memory of a process that has opened torch and a model, and no orchestrator.
LIBRARIES = 400 * MEBIBYTE
# Seconds of starting and importing, and of what small files take: benchmarks.forecasts.
STARTING = 8.0
# Less than this a machine's own unrest makes.
TOLD_FROM = 1.5


@dataclass(frozen=True)
class Forecast:
    """Seconds of all stages together, and the bytes of memory of the one that needs most.

    ``slowed`` is how many times as long others' work on this machine makes it.
    """

    seconds: float
    memory: int
    slowed: float = 1.0

    def __str__(self) -> str:
        told = f"about {duration(self.seconds)}"
        if self.slowed > TOLD_FROM:
            told += f" ({duration(self.slowed * self.seconds)} beside what else runs here now)"
        return f"{told} and {gigabytes(self.memory)} of memory"


def forecast(
    settings: LineSettings, checkpoint: Checkpoint, rates: Rates | None = None
) -> Forecast:
    """What the stages to the smaller model take on a CPU; ``settings`` name their method.

    The rate of products is measured where none is given.
    """
    rates = rates or usual_rates(checkpoint.shape, torch_dtype(settings.compute.named_dtype))
    estimates = MakingEstimates(
        settings, checkpoint, rates, libraries=LIBRARIES, around=0.0
    ).making()
    needs = [need for _, need in estimates]
    seconds = STARTING + sum(need.seconds for need in needs)
    return Forecast(seconds, max(need.memory for need in needs), slowed())


def slowed() -> float:
    """How many times as long this process takes at the machine's load of the last minute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1.0, (os.getloadavg()[0] + torch.get_num_threads()) / (cores or 1))


def duration(seconds: float) -> str:
    """A time as it is told of an estimate."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
