"""What a measurement was made on: processor, memory, disk, libraries, and who else was there."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bipline.artifacts.stage_key import code_digest, library_versions, processor
from bipline.compression.criteria import CRITERIA, module_name


def machine(folder: Path) -> dict[str, Any]:
    """The machine as JSON; ``folder`` is where the models lie and the outputs go."""
    libraries = library_versions()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "disk": file_system(folder),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: libraries[name] for name in ("torch", "transformers", "safetensors")},
        "code": code_digest("bipline.cli", *map(module_name, CRITERIA))[:12],
        "load_before": round(os.getloadavg()[0], 2),
    }


def file_system(folder: Path) -> str:
    """The file system and the device that a folder lies on."""
    place = str(folder.resolve())
    found = ("", "unknown")
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        device, point, kind = line.split()[:3]
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = (point, f"{kind} on {device}")
    return found[1]


class ProcessorTime:
    """Counts what other guests of the same host took from this machine while it was measured."""

    def __init__(self) -> None:
        self._start = _ticks()

    def stolen_share(self) -> float:
        """The share of the processor's time since the start that the host gave to others."""
        passed = [now - before for now, before in zip(_ticks(), self._start, strict=True)]
        return round(passed[7] / max(1, sum(passed)), 4)


def described(facts: dict[str, Any]) -> list[str]:
    """The machine in lines for people."""
    return [
        f"{facts['date']}; code {facts['code']}",
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads; "
        f"{facts['memory_bytes'] / 1e9:.1f} GB of memory; {facts['disk']}; "
        f"GPU: {facts['gpu'] or 'none'}",
        f"{facts['system']}; Python {facts['python']}, PyTorch {facts['torch']}, "
        f"transformers {facts['transformers']}, safetensors {facts['safetensors']}",
        f"load before the run {facts['load_before']}; "
        f"{facts.get('stolen_share', 0):.1%} of the processor's time went to other machines "
        "of the host",
    ]


def _ticks() -> list[int]:
    """User, nice, system, idle, iowait, irq, softirq and steal, in ticks."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    return [int(word) for word in first.split()[1:9]]
