"""One pass of calibration windows through all blocks, in which a criterion looks at every token.

Windows go through a block chunk by chunk; partial sums are kept per chunk. With a work directory
each finished block is recorded, and a killed run goes on there to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bipline.base.progress import note, track
from bipline.compression.computing import Computing
from bipline.compression.criteria import Criterion
from bipline.compression.criteria.interface import Block, Options, Sums, Tokens
from bipline.compression.partial_sums import Accumulator, ChunkSums
from bipline.compression.score_progress import BlockOutcome, ScoreProgress
from bipline.compression.workers import Workers
from bipline.model.block_loop import Activations
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import Checkpoint
from bipline.model.hidden_states import CHUNK_WINDOWS

Finish = Callable[[LoopBlock, ChunkSums], BlockOutcome]


@dataclass(frozen=True)
class Observe:
    """A criterion's way of looking at tokens, with its options."""

    criterion: Criterion
    options: Options

    def __call__(self, block: Block, tokens: Tokens) -> Sums:
        """Sums of one micro-batch."""
        return self.criterion.observe(block, tokens, self.options)


class ForwardPass:
    """One pass of windows through all blocks, recorded in ``work`` where there is one."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        token_ids: torch.Tensor,
        chunks: range,
        observe: Observe,
        computing: Computing,
        work: Path | None,
        workers: Workers,
    ) -> None:
        self.checkpoint = checkpoint
        self.token_ids = token_ids
        self.chunks = chunks
        self.observe = observe
        self.workers = workers
        self.layers = checkpoint.shape.num_hidden_layers
        self.loop = computing.loop(checkpoint)
        self.loop.check(token_ids)
        self.states = self.loop.states(token_ids, work, computing.resident)
        self.progress = ScoreProgress(work, checkpoint) if work else None

    def run(self, finish: Finish) -> list[BlockOutcome]:
        """What ``finish`` makes of every block's partial sums, those of earlier runs included."""
        finished = self._taken_up()
        layers = self.layers
        if not finished:
            self.loop.embed_into(self.states, self.token_ids)
        blocks = self.loop.blocks(range(len(finished), layers))
        for block in track(blocks, "score blocks", layers - len(finished)):
            finished.append(finish(block, self._observe(block)))
            if self.progress:
                self.progress.save(block.index, self.states, finished[-1])
        return finished

    def _taken_up(self) -> list[BlockOutcome]:
        if self.progress is None:
            return []
        own = self.progress.finished(self.states)
        done = self.workers.least(own)
        if done < own:
            done = self.progress.finished(self.states, done)
        if done:
            note(f"going on after block {done} of {self.layers}, which were finished")
        return self.progress.load(done)

    def _observe(self, block: LoopBlock) -> ChunkSums:
        seen = Block.of(self.checkpoint, block.index, block.weights)
        sums, seqlen = Accumulator(), self.token_ids.shape[1]
        windows: dict[int, int] = {}

        def observe(number: int, activations: Activations) -> None:
            chunk = self.chunks.start + number
            first = windows.setdefault(chunk, chunk * CHUNK_WINDOWS)
            tokens = Tokens(activations, seqlen, first)
            windows[chunk] += len(tokens.places) // seqlen
            sums.add(chunk, self.observe(seen, tokens))

        block.advance(self.states, observe)
        return sums.chunks
