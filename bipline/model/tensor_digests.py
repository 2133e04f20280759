"""Digests of tensors, taken while they are read anyway, and held against what is expected.

A model's bytes are read once to be computed with; hashing them in a pass of their own would read
a 70B model twice. So every whole reading leaves its digest here, and a digest that was expected
(from saved statistics, from an earlier run) is compared at that moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from bipline.base.errors import InvalidInput
from bipline.model.safetensors_header import StoredTensor
from bipline.storage.digests import digest_json


class TensorDigests:
    """The digests known so far, by tensor name. ``known`` were taken by this process."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.expected: dict[str, str] = {}
        self._refusal = ""

    def expect(self, digests: Mapping[str, str], refusal: str) -> None:
        """Hold readings against ``digests``; ``refusal`` opens the message where one differs.

        Raises InvalidInput at once for a tensor that was read already and differs.
        """
        self.expected.update(digests)
        self._refusal = refusal
        for name in digests:
            if name in self.known:
                self._compare(name)

    def add(self, name: str, stored: StoredTensor, content: str) -> None:
        """Record the sha256 of a tensor's bytes. Raises InvalidInput where it is not expected."""
        self.known[name] = digest_json([stored.dtype, list(stored.shape), content])
        self._compare(name)

    def _compare(self, name: str) -> None:
        expected = self.expected.get(name)
        if expected is not None and expected != self.known[name]:
            raise InvalidInput(f"{self._refusal}: tensor {name} differs")


class RunningDigest:
    """sha256 over pieces of a tensor; a no-op where the digest is known already."""

    def __init__(self, wanted: bool) -> None:
        self._sha256 = hashlib.sha256() if wanted else None

    def update(self, piece: memoryview) -> None:
        """Take in the next piece."""
        if self._sha256 is not None:
            self._sha256.update(piece)

    def content(self) -> str | None:
        """The sha256 in hex, or None where it was not wanted."""
        return self._sha256.hexdigest() if self._sha256 else None
