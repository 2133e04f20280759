"""Perplexity: the text is joined and tokenised once and cut into windows that do not overlap.

Within a window every token but the first is predicted; token losses are float32, their sum is
float64. The tokens after the last whole window are left out, as in LLM-Pruner's protocol. With a
stride windows overlap, and the loss of their last ``stride`` tokens counts; all count alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.base.progress import note, track
from bipline.model.block_loop import BlockLoop
from bipline.model.memory import MemoryNeed, gigabytes, memory_limit, memory_need, states_fit
from bipline.model.token_ids import rendered, token_ids
from bipline.settings.protocol import BosPolicy
from bipline.values.record import Perplexity

JOIN = "\n\n"


def text_windows(
    tokenizer: Any,
    documents: list[str],
    seqlen: int,
    bos: BosPolicy,
    max_memory: int | None = None,
    join: str = JOIN,
    stride: int | None = None,
) -> torch.Tensor:
    """The token windows of a text, ``[windows, seqlen]``; ``join`` stands between its documents.

    A window begins ``stride`` tokens after the one before, None: where that ends.
    Raises InvalidInput when the text is shorter than one window, takes more than ``max_memory`` or
    the tokenizer fails on it, and when a BOS is asked of a tokenizer that has none.
    """
    if bos != "none" and tokenizer.bos_token_id is None:
        raise InvalidInput(f"bos policy {bos!r}: the tokenizer has no BOS token; use 'none'")
    text = join.join(rendered(tokenizer, documents))
    [ids] = token_ids(tokenizer, [text], special_tokens=False, max_memory=max_memory)
    if bos == "text":
        ids = [tokenizer.bos_token_id, *ids]
    width = seqlen - 1 if bos == "window" else seqlen
    if len(ids) < width:
        raise InvalidInput(f"the text has {len(ids)} tokens, shorter than one window of {seqlen}")
    step = stride or width
    _check_size(1 + (len(ids) - width) // step, seqlen, step, max_memory)
    windows = torch.tensor(ids, dtype=torch.int64).unfold(0, width, step).contiguous()
    if bos == "window":
        opening = torch.full((len(windows), 1), tokenizer.bos_token_id, dtype=torch.int64)
        windows = torch.cat([opening, windows], dim=1)
    return windows


def _check_size(windows: int, seqlen: int, stride: int, max_memory: int | None) -> None:
    """Raise InvalidInput for more windows than memory holds: a small stride makes many."""
    need, limit = windows * seqlen * torch.int64.itemsize, memory_limit(max_memory)
    if need > limit:
        raise InvalidInput(
            f"stride {stride}: {windows:,} windows of {seqlen} tokens take {gigabytes(need)} as "
            f"token ids alone, of {gigabytes(limit)}; take a larger stride, or less text"
        )


def perplexity(
    loop: BlockLoop, windows: torch.Tensor, name: str, max_memory: int | None = None
) -> Perplexity:
    """Perplexity of token windows ``[windows, seqlen]``; ``name`` is for the progress display.

    Memory and its errors are those of :func:`token_losses`.
    """
    return measure_text(loop, windows, name, max_memory)[0]


def measure_text(
    loop: BlockLoop,
    windows: torch.Tensor,
    name: str,
    max_memory: int | None = None,
    stride: int | None = None,
) -> tuple[Perplexity, tuple[float, ...]]:
    """The same, and beside it the mean nats per token of every window: of its last ``stride``."""
    losses = token_losses(loop, windows, f"perplexity of {name}", max_memory).double()
    losses = losses[:, -stride:] if stride else losses
    means = tuple(losses.mean(1).tolist())
    return _summary(float(losses.sum()) / losses.numel(), losses.numel(), means, name), means


def token_losses(
    loop: BlockLoop, windows: torch.Tensor, what: str, max_memory: int | None = None
) -> torch.Tensor:
    """Loss in nats of every token that is predicted, float32 ``[windows, seqlen - 1]``.

    ``what`` is for the progress display. Hidden states that ``max_memory`` (or the machine) has no
    room for are kept in a temporary folder. Raises InvalidInput or EnvironmentFailure where even
    that is not enough.
    """
    need = memory_need(loop, windows, logits=True)
    resident = states_fit(need, max_memory)
    with _folder(resident, need) as folder:
        states = loop.states(windows, folder, resident)
        loop.embed_into(states, windows)
        layers = loop.checkpoint.shape.num_hidden_layers
        for block in track(loop.blocks(), what, layers):
            block.advance(states)
        return loop.negative_log_likelihood(states, windows)


@contextmanager
def _folder(resident: bool, need: MemoryNeed) -> Iterator[Path | None]:
    if resident:
        yield None
        return
    with TemporaryDirectory(prefix="bipline-") as folder:
        note(f"hidden states ({gigabytes(need.hidden_states)}) are kept on disk in {folder}")
        yield Path(folder)


def _summary(nll: float, tokens: int, means: tuple[float, ...], name: str) -> Perplexity:
    if not math.isfinite(nll) or nll > 700:
        raise InvalidInput(f"the loss on {name} is {nll}: the weights or the dtype are unusable")
    count = len(means)
    error = stdev(means) / math.sqrt(count) if count > 1 else None
    return Perplexity(value=math.exp(nll), nll=nll, tokens=tokens, nll_stderr=error, windows=count)
