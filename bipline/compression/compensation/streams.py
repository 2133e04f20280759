"""Streams: the dense model's hidden states, and those of the pruned model beside them.

Windows are divided once: some are fitted on, a few, evenly spread, are held out. Which ones
depends on their number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bipline.model.block_loop import BlockLoop, micro_batch_of
from bipline.model.families import build_of
from bipline.model.halves import DOWN_PROJ, O_PROJ, Halves

# Hidden states of all windows that there are: dense, pruned, and between a block's halves; where
# halves are parallel also what entered the dense block.
STREAMS, PARALLEL_STREAMS = 3, 4


def held_out_windows(windows: int, share: float) -> list[int]:
    """The places of the windows that are held out: evenly spread, at least one, never all."""
    return evenly_spread(windows, min(max(1, round(share * windows)), windows - 1))


def evenly_spread(windows: int, most: int) -> list[int]:
    """The places of at most so many windows, evenly spread: windows lie text by text."""
    count = min(windows, most)
    return [int((place + 0.5) * windows / count) for place in range(count)]


def divided(token_ids: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Windows to fit on and windows held out: ``[windows, seqlen]`` each."""
    held = torch.zeros(len(token_ids), dtype=torch.bool)
    held[held_out_windows(len(token_ids), share)] = True
    return token_ids[~held], token_ids[held]


@dataclass(frozen=True)
class Seen:
    """A micro-batch in the dense block, ``[windows, seqlen, width]`` each.

    ``stream`` is what enters the same block in the other stream, ``residual`` the dense stream
    after attention. ``widths`` holds what is as wide as a sublayer, by the names of the family's
    build: ``attention_output``, ``gate``, ``up``, ``ffn_activation``, where the block has it, and
    what enters norms behind them.
    """

    hidden: Tensor
    stream: Tensor
    residual: Tensor
    widths: dict[str, Tensor]


class Batch(NamedTuple):
    """A micro-batch at a half of a block, ``[windows, seqlen, hidden_size]`` each.

    What the half reads, what it adds to (the same, but for the FFN of a parallel block), and what
    should come of it.
    """

    reads: Tensor
    adds_to: Tensor
    target: Tensor


# What enters a half of the pruned block and should come of it: all micro-batches but the first so
# many, at every call.
Batches = Callable[[int], Iterator[Batch]]


class Streams:
    """Hidden states of some windows, in the dense model and in another stream beside it.

    ``folder`` is where they are kept; None for memory. With ``sequential`` the other stream runs
    through the pruned blocks; else it is what entered the dense block that the dense stream
    entered last. What the other stream is between a block's halves is kept beside it, because the
    FFN is fitted on it in many passes, and because the attention half may still be given up.
    """

    def __init__(
        self,
        loop: BlockLoop,
        token_ids: Tensor,
        sequential: bool,
        folder: Path | None = None,
    ) -> None:
        self._loop, self._sequential = loop, sequential
        self.tokens = token_ids.numel()
        self._size = micro_batch_of(token_ids.shape[1], loop.micro_batch)
        self._parallel = build_of(loop.checkpoint.family).parallel
        names = ("dense", "pruned", "between", *(("entry",) if self._parallel else ()))
        places = [folder / name if folder else None for name in names]
        for place in filter(None, places):
            place.mkdir(parents=True, exist_ok=True)
        self._dense, self._other, self._between, *entry = (
            loop.states(token_ids, place, resident=place is None) for place in places
        )
        # What enters a parallel block's dense stream, which its FFN reads too.
        self._entry = entry[0] if self._parallel else self._dense
        self._is_between = False
        for states in (self._dense, self._other):
            loop.embed_into(states, token_ids)

    def advance_attention(
        self, halves: Halves, visit: Callable[[Seen], None] | None = None, ffn: bool = False
    ) -> None:
        """Run the dense stream through a block's attention, showing every micro-batch.

        Without ``ffn`` what the FFN makes is not among what is shown.
        """
        shown = halves if ffn else attention_half(halves)
        if not self._sequential:
            self._other.fill(self._dense.chunk)
        if self._parallel:
            self._entry.fill(self._dense.chunk)

        def step(number: int, chunk: Tensor) -> Tensor:
            outputs = []
            others = self._parts(self._other.chunk(number))
            for hidden, stream in zip(self._parts(chunk), others, strict=True):
                seen = see(shown, hidden, stream)
                if visit:
                    visit(seen)
                outputs.append(seen.residual)
            return torch.cat(outputs)

        self._dense.advance(step)

    def advance_ffn(self, halves: Halves) -> None:
        """Run the dense stream, which is behind the block's attention, through its FFN."""

        def step(number: int, chunk: Tensor) -> Tensor:
            entry = self._entry.chunk(number) if self._parallel else chunk
            pairs = zip(self._parts(chunk), self._parts(entry), strict=True)
            return torch.cat([halves.after_ffn(*pair) for pair in pairs])

        self._dense.advance(step)

    def advance_dense(self, halves: Halves) -> None:
        """Run the dense stream through a whole block."""
        self.advance_attention(halves)
        self.advance_ffn(halves)

    def pass_attention(self, halves: Halves) -> None:
        """Run the other stream through a pruned block's attention, and keep it beside its entry."""

        def passed(number: int) -> Tensor:
            parts = self._parts(self._other.chunk(number))
            return torch.cat([halves.after_attention(part) for part in parts])

        self._between.fill(passed)
        self._is_between = True

    def give_up_attention(self) -> None:
        """Forget what was made between the halves."""
        self._is_between = False

    def advance_pruned(self, halves: Halves) -> None:
        """Run the other stream through a pruned block, from between its halves if it is there."""
        between, self._is_between = self._is_between, False

        def step(number: int, chunk: Tensor) -> Tensor:
            if not between:
                return torch.cat([halves.run(part) for part in self._parts(chunk)])
            pairs = zip(*map(self._parts, (self._between.chunk(number), chunk)), strict=True)
            return torch.cat([halves.after_ffn(*pair) for pair in pairs])

        self._other.advance(step)

    def batches(self, between: bool = False) -> Iterator[Batch]:
        """Micro-batches of the other stream at its attention, or ``between`` at its FFN.

        The target is what the dense stream is now.
        """
        adds_to = self._between if between else self._other
        reads = self._other if self._parallel else adds_to
        for number in range(self._dense.shape.chunks):
            chunks = (states.chunk(number) for states in (reads, adds_to, self._dense))
            for parts in zip(*map(self._parts, chunks), strict=True):
                yield Batch(*parts)

    def _parts(self, chunk: Tensor) -> tuple[Tensor, ...]:
        return chunk.to(self._loop.device).split(self._size)


@torch.no_grad()
def see(halves: Halves, hidden: Tensor, stream: Tensor) -> Seen:
    """Run a micro-batch through the dense block and keep what it makes on the way."""
    widths = {}
    residual = hidden
    if halves.has_attention:
        widths["attention_output"] = halves.attention_output(hidden)
        projected = halves.project(O_PROJ, widths["attention_output"])
        residual = hidden + halves.added(O_PROJ, projected)
        if halves.normed_behind:
            widths["attention_projected"] = projected
    if halves.has_ffn:
        inner = halves.up_and_gate(halves.ffn_reads(residual, hidden))
        widths |= inner
        widths["ffn_activation"] = halves.activation(**inner)
        if halves.normed_behind:
            widths["ffn_projected"] = halves.project(DOWN_PROJ, widths["ffn_activation"])
    return Seen(hidden, stream, residual, widths)


def attention_half(block: Halves) -> Halves:
    """The same without its FFN, which nothing need hold while attention alone is run."""
    there = block.weights.items()
    return block.changed({name: held for name, held in there if not name.startswith("mlp.")})
