"""What criteria draw: always from names and places, never from a generator's state.

So a draw is the same however windows are divided among micro-batches, workers and devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.storage.digests import digest_bytes

BITS = 32


def seed_of(*parts: object) -> int:
    """A seed of 60 bits from what is drawn for: seed, block, probe."""
    return int(digest_bytes("/".join(map(str, parts)).encode())[:15], 16)


def random_signs(places: Tensor, width: int, seed: int) -> Tensor:
    """Independent fair signs for every token, ``[tokens] -> [tokens, width]`` in int64.

    The bits are SplitMix64's output function on a counter (Steele, Lea and Flood 2014,
    doi:10.1145/2660193.2660195), 32 of them a call; ``places`` are the tokens' numbers.
    """
    words = -(-width // BITS)
    counter = places[:, None] * words + torch.arange(words, device=places.device)
    mixed = _mixed(counter * _signed(0x9E3779B97F4A7C15) + seed)
    bits = (mixed[..., None] >> torch.arange(BITS, device=places.device)) & 1
    return bits.flatten(1)[:, :width] * 2 - 1


def _mixed(value: Tensor) -> Tensor:
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, count: int) -> Tensor:
    """A shift to the right that brings in zeros: torch's own keeps the sign."""
    return (value >> count) & ((1 << (64 - count)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
