"""What this machine does at best, measured in a process of its own.

    python -m benchmarks.gpu.rates --device cuda --folder DIR --json FILE

Disk: one file written and flushed, then read behind a dropped cache. Device: the copy from pinned
memory, and products of square matrices of random numbers. Rates are of the median repeat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from bipline.storage.directory import write_text
from bipline.storage.folder import forget_cached

PIECE_BYTES = 16 << 20
COPY_BYTES = 1 << 30
REPEATS = 5
PRODUCTS = (torch.bfloat16, torch.float32, torch.float64)
QUERY = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def main() -> None:
    """Measure, and write the machine and its rates as JSON."""
    parser = argparse.ArgumentParser(description="Measure this machine's rates.")
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk that is measured")
    parser.add_argument("--file-bytes", type=int, default=4 << 30)
    parser.add_argument("--matrix-size", type=int, default=8192)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    values = {
        **machine(given.folder),
        "driver": driver(),
        "device": str(given.device),
        "device_bytes": device_bytes(given.device),
        **disk_rates(given.folder / "rates.bin", given.file_bytes),
        **device_rates(given.device, min(COPY_BYTES, given.file_bytes), given.matrix_size),
    }
    write_text(given.json, json.dumps(values, indent=1) + "\n")


def driver() -> str | None:
    """The cards with driver and memory as the driver tells them; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    told = subprocess.run([tool, *QUERY], capture_output=True, text=True, check=False)  # noqa: S603
    return "; ".join(told.stdout.split("\n")).strip("; ") or None


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU in bytes; 0 for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def disk_rates(path: Path, size: int) -> dict[str, float]:
    """Bytes a second that are written, read, and hashed as bipline hashes what it reads."""
    piece = memoryview(bytearray(os.urandom(PIECE_BYTES)))
    try:
        writing = _seconds(lambda: _write(path, piece, size))
        forget_cached(path)
        reading = _seconds(lambda: _read(path, piece))
    finally:
        path.unlink(missing_ok=True)
    hashing = _median(lambda: hashlib.sha256(piece))
    return {
        "write_bytes_per_second": size / writing,
        "read_bytes_per_second": size / reading,
        "hash_bytes_per_second": PIECE_BYTES / hashing,
    }


def device_rates(device: torch.device, copied: int, size: int) -> dict[str, Any]:
    """Bytes a second from the host's pinned memory, operations a second by dtype."""
    pinned = device.type == "cuda"
    host = torch.empty(copied, dtype=torch.uint8, pin_memory=pinned).random_()
    there = torch.empty_like(host, device=device)
    copying = _median(lambda: there.copy_(host, non_blocking=True), device)
    products = {
        str(dtype).removeprefix("torch."): product_rate(device, dtype, size) for dtype in PRODUCTS
    }
    return {"copy_bytes_per_second": copied / copying, "operations_per_second": products}


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a product of two square matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return float(2 * size**3 / _median(lambda: left @ right, device))


def _median(work: Callable[[], Any], device: torch.device | None = None) -> float:
    """Seconds of the median repeat, after one that is not counted."""
    return statistics.median([_seconds(work, device) for _ in range(REPEATS + 1)][1:])


def _seconds(work: Callable[[], Any], device: torch.device | None = None) -> float:
    cuda = device is not None and device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _write(path: Path, piece: memoryview, size: int) -> None:
    with path.open("wb") as file:
        for offset in range(0, size, len(piece)):
            file.write(piece[: size - offset])
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, piece: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


if __name__ == "__main__":
    main()
