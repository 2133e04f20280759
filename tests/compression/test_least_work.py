"""What stages have to do at least, against counts taken from a real forward pass."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bipline.compression.least_work import least_work
from bipline.model.block_loop import BlockLoop
from bipline.model.floor import Work
from bipline.model.opening import open_checkpoint
from tests.corrections import whole
from tests.tiny import token_windows

WINDOWS, SEQLEN, WRITTEN = 3, 16, 12345


def counted(model: Path, backend: SDPBackend) -> int:
    """Operations of a pass; torch counts attention's products where they are plain ones."""
    loop = BlockLoop(open_checkpoint(model), torch.float64)
    hidden = loop.embed(token_windows(windows=WINDOWS, seqlen=SEQLEN))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(backend):
        for index in range(loop.checkpoint.shape.num_hidden_layers):
            hidden = loop.block(index).run(hidden)
    return counter.get_total_flops()


def test_a_pass_over_windows(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    works = least_work(checkpoint, whole(checkpoint), "llm-bip-glu", WINDOWS, SEQLEN, WRITTEN)
    assert works.keys() == {"score", "prune"}
    assert works["prune"] == Work(read=WRITTEN, written=WRITTEN)
    linear = counted(llama, SDPBackend.FLASH_ATTENTION)
    attention = counted(llama, SDPBackend.MATH) - linear
    assert attention > 0
    # Attention that knows it is causal leaves half of its products out.
    assert works["score"].operations == linear + attention / 2
    stored = checkpoint.tensors
    assert works["score"].read == sum(stored[n].num_bytes for n in stored if ".layers." in n)


def test_what_was_not_scored_is_read_alone(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    works = least_work(checkpoint, whole(checkpoint), "llm-bip-glu", 0, SEQLEN, WRITTEN)
    assert works["score"].operations == 0 < works["score"].read
