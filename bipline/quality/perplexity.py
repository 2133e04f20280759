"""Perplexity: the text is joined and tokenised once and cut into windows that do not overlap.

Within a window every token but the first is predicted; token losses are float32, their sum is
float64. The tokens after the last whole window are left out, as in LLM-Pruner's protocol.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.progress import track
from bipline.artifacts.record import Perplexity
from bipline.model.block_loop import BlockLoop
from bipline.quality.protocols import BosPolicy

JOIN = "\n\n"
# Hidden states of this many bytes (float32) are held between blocks; longer texts go in slabs.
SLAB_BYTES = 512 << 20


def text_windows(tokenizer: Any, documents: list[str], seqlen: int, bos: BosPolicy) -> torch.Tensor:
    """The token windows of a text, ``[windows, seqlen]``.

    Raises InvalidInput when the text is shorter than one window or a BOS is asked of a tokenizer
    that has none.
    """
    if bos != "none" and tokenizer.bos_token_id is None:
        raise InvalidInput(f"bos policy {bos!r}: the tokenizer has no BOS token; use 'none'")
    text = JOIN.join(documents)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if bos == "text":
        ids = [tokenizer.bos_token_id, *ids]
    width = seqlen - 1 if bos == "window" else seqlen
    count = len(ids) // width
    if count < 1:
        raise InvalidInput(f"the text has {len(ids)} tokens, shorter than one window of {seqlen}")
    windows = torch.tensor(ids[: count * width], dtype=torch.int64).view(count, width)
    if bos == "window":
        opening = torch.full((count, 1), tokenizer.bos_token_id, dtype=torch.int64)
        windows = torch.cat([opening, windows], dim=1)
    return windows


def perplexity(loop: BlockLoop, windows: torch.Tensor, name: str) -> Perplexity:
    """Perplexity of token windows ``[windows, seqlen]``; ``name`` is for the progress display."""
    shape = loop.checkpoint.shape
    slab = max(1, SLAB_BYTES // (windows.shape[1] * shape.hidden_size * 4))
    slabs = windows.split(slab)
    total = 0.0
    for number, part in enumerate(slabs, start=1):
        where = f" ({number} of {len(slabs)})" if len(slabs) > 1 else ""
        hidden = loop.embed(part)
        blocks = track(loop.blocks(), f"perplexity of {name}{where}", shape.num_hidden_layers)
        for block in blocks:
            hidden = block.run(hidden)
        total += float(loop.negative_log_likelihood(hidden, part).double().sum())
    return _summary(total, windows.shape[0] * (windows.shape[1] - 1), name)


def _summary(total: float, tokens: int, name: str) -> Perplexity:
    nll = total / tokens
    if not math.isfinite(nll) or nll > 700:
        raise InvalidInput(f"the loss on {name} is {nll}: the weights or the dtype are unusable")
    return Perplexity(value=math.exp(nll), nll=nll, tokens=tokens)
