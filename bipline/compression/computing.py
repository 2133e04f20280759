"""How a forward pass is computed: dtype, device, micro-batch, and where hidden states are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bipline.base.progress import note
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import CPU
from bipline.model.memory import available_bytes, gigabytes, pass_need, states_fit


@dataclass(frozen=True)
class Computing:
    """What may change the last bits of a sum, and ``resident``: hidden states in memory.

    ``max_memory`` is the user's limit in bytes. Gradients run one window at a time, whatever the
    micro-batch.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    micro_batch: int | None = None
    resident: bool = True
    max_memory: int | None = None

    @property
    def dtype_name(self) -> str:
        """The dtype as users write it."""
        return str(self.dtype).removeprefix("torch.")

    def loop(self, checkpoint: Checkpoint) -> BlockLoop:
        """The block loop of a model, computed this way."""
        return BlockLoop(checkpoint, self.dtype, self.device, self.micro_batch)

    def within(
        self, max_memory: int | None, checkpoint: Checkpoint, token_ids: torch.Tensor
    ) -> Computing:
        """The same, with hidden states on disk where memory has no room for them.

        ``max_memory`` is in bytes; None is what the machine has free. Raises InvalidInput or
        EnvironmentFailure, with the numbers, when even that is not enough.
        """
        windows, seqlen = token_ids.shape
        need = pass_need(checkpoint, self.dtype, (windows, seqlen), False, self.micro_batch)
        resident = states_fit(need, max_memory)
        place = "in memory" if resident else "on disk"
        limit = available_bytes() if max_memory is None else max_memory
        note(
            f"memory: {gigabytes(need.total if resident else need.least)} of "
            f"{gigabytes(limit)}, {gigabytes(need.hidden_states)} of hidden states {place}"
        )
        return replace(self, resident=resident, max_memory=max_memory)
