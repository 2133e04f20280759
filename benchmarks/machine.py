"""What a measurement was made on: processor, memory, disk, libraries, and who else was there."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bipline.compression.criteria import CRITERIA, module_name
from bipline.storage.stage_key import code_digest, library_versions, processor


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
        "code": code_digest("bipline.face.cli", *map(module_name, CRITERIA))[:12],
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
    """Counts what others took of the processor while it was measured: figures suffer from it."""

    def __init__(self) -> None:
        self._ticks, self._own = _ticks(), _own_seconds()

    def shares(self) -> dict[str, float]:
        """Shares of all cores' time since the start.

        ``others_share`` went to other processes of this machine, ``stolen_share`` to other
        machines of the same host.
        """
        passed = [now - before for now, before in zip(_ticks(), self._ticks, strict=True)]
        user, nice, system, _, _, interrupts, soft_interrupts, stolen = passed
        own = (_own_seconds() - self._own) * os.sysconf("SC_CLK_TCK")
        others = user + nice + system + interrupts + soft_interrupts - own
        whole = max(1, sum(passed))
        return {
            "others_share": round(max(0.0, others / whole), 4),
            "stolen_share": round(stolen / whole, 4),
        }


def described(facts: dict[str, Any]) -> list[str]:
    """The machine in lines for people."""
    return [
        f"{facts['date']}; code {facts['code']}",
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads; "
        f"{facts['memory_bytes'] / 1e9:.1f} GB of memory; {facts['disk']}; "
        f"GPU: {facts['gpu'] or 'none'}",
        f"{facts['system']}; Python {facts['python']}, PyTorch {facts['torch']}, "
        f"transformers {facts['transformers']}, safetensors {facts['safetensors']}",
        f"load before the run {facts['load_before']}; of all cores' time during it "
        f"{facts.get('others_share', 0):.1%} went to other processes and "
        f"{facts.get('stolen_share', 0):.1%} to other machines of the host",
    ]


def _ticks() -> list[int]:
    """User, nice, system, idle, iowait, irq, softirq and steal, in ticks."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    return [int(word) for word in first.split()[1:9]]


def _own_seconds() -> float:
    """Seconds of processor time of this process and of those that it started and that ended."""
    return sum(os.times()[:4])
