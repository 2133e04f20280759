"""What a step of a pipeline needs of the machine it runs on: an estimate, known before it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepNeed:
    """Bytes of private memory and of files, seconds, and the memory of a GPU where it uses one.

    ``operations`` are floating-point operations, ``read`` and ``written`` bytes: what the seconds
    are for.
    """

    memory: int
    disk: int
    seconds: float
    gpu: bool = False
    gpu_memory: int = 0
    operations: float = 0.0
    read: int = 0
    written: int = 0

    def __str__(self) -> str:
        on_gpu = f", a GPU with {self.gpu_memory / 1e9:.1f} GB" if self.gpu else ""
        return f"memory {self.memory / 1e9:.2f} GB{on_gpu}, disk {self.disk / 1e9:.2f} GB"
