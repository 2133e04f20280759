"""Windows: the calibration windows that a stage runs, and how they are computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bipline.compression.computing import Computing


@dataclass(frozen=True)
class Windows:
    """Token ids ``[windows, seqlen]``, their digest, and how they are run."""

    token_ids: torch.Tensor
    digest: str
    computing: Computing

    @classmethod
    def none(cls) -> Windows:
        """For methods that read the weights alone: no text, an empty digest."""
        return cls(torch.zeros((1, 2), dtype=torch.int64), "", Computing())
