"""Where a block is computed, and how its weights get there.

On a GPU the next block travels while the current one computes: the reading thread fills pinned
host memory and starts a copy on a stream of its own; the computing stream waits for that copy
alone. Two places on the device take turns. The same class runs on the CPU without streams, which
is how its bookkeeping is tested; not measured on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import EnvironmentFailure, InvalidInput

CPU = torch.device("cpu")
# What torch calls products of bfloat16 that processors of x86 have.
NARROW_PRODUCTS = ("amx_bf16", "avx512_bf16")
SLOTS = 2


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU where PyTorch sees one, else the CPU.

    Raises EnvironmentFailure for a GPU that was asked for and is missing, InvalidInput for a name
    that is no device this engine runs on.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInput(f"device {name!r} is unknown; give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"device {name!r} is not supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFailure(
            f"device {name!r} was asked for, and PyTorch sees {torch.cuda.device_count()} GPUs "
            "here; give --device cpu or auto"
        )
    return device


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself, several times as quick as float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in NARROW_PRODUCTS)


class Transfer:
    """Two places on a device for ``elements`` numbers each, filled in turn from host memory."""

    def __init__(self, elements: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.places = [torch.empty(elements, dtype=dtype, device=device) for _ in range(SLOTS)]
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: list[Any] = [None] * SLOTS
        self._used: list[Any] = [None] * SLOTS

    def send(self, host: Tensor, slot: int) -> None:
        """Start copying host memory into a place, after the computation that still reads it."""
        if self._stream is None:
            self.places[slot].copy_(host)
            return
        with torch.cuda.stream(self._stream):
            if self._used[slot] is not None:
                self._stream.wait_event(self._used[slot])
            self.places[slot].copy_(host, non_blocking=True)
            self._copied[slot] = self._stream.record_event()

    def arrived(self, slot: int) -> Tensor:
        """The place, for use by the computing stream, which waits until it is filled."""
        if self._copied[slot] is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied[slot])
        return self.places[slot]

    def release(self, slot: int) -> None:
        """What was computed from a place so far is all that will be: it may be filled again."""
        if self._stream is not None:
            self._used[slot] = torch.cuda.current_stream(self.device).record_event()

    def host_is_free(self, slot: int) -> None:
        """Wait until host memory was copied out, before it is overwritten."""
        if self._copied[slot] is not None:
            self._copied[slot].synchronize()


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name. Raises InvalidInput for others than float32, bfloat16, float64."""
    dtypes = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float64": torch.float64,
    }
    if name not in dtypes:
        raise InvalidInput(f"dtype {name!r} is unknown; known: {', '.join(dtypes)}")
    return dtypes[name]
