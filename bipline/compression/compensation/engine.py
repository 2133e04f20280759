"""Compensate: block by block, in order, the corrected matrices of a plan.

Of every block the attention half comes first. Its o_proj is fitted, compared and fixed, then v_proj
and o_proj behind it; only then are the FFN's inputs collected, with attention pruned and corrected,
and down_proj and the rows before it fitted.
Sequentially, inputs come from the blocks pruned before and targets from the dense model, so that
a block also corrects what those before it left (methods 5.5; Tyr-the-Pruner, arXiv 2503.09657,
finds this decisive). Otherwise every block is fitted on the dense model's own stream.

What stays is chosen on the calibration windows. Weights are fitted on these and on windows that
were drawn, so that a fit also holds for text that is unlike them (ours).

Memory holds two blocks, two streams of hidden states, one of them also between a block's halves,
and one block's moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.progress import track
from bipline.compression.compensation.block_fit import BlockFit
from bipline.compression.compensation.drawn_windows import Division
from bipline.compression.compensation.held_out import HeldOut
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import Streams
from bipline.compression.compensation.tokens import check_tokens
from bipline.compression.compensation.versions import PrunedBlock
from bipline.compression.computing import Computing
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import O_PROJ
from bipline.values.compensation import COMPENSATIONS, LADDER, BlockRecord, Compensation
from bipline.values.plan import BlockPlan, PruningPlan

# What corrects the experts of a mixture too.
OF_EXPERTS: tuple[Compensation, ...] = ("least-squares",)


class Progress(Protocol):
    """Where finished blocks are kept, for a run that was killed to go on from."""

    def load(self, index: int) -> BlockCorrection | None:
        """What an earlier run made of this block."""

    def save(self, correction: BlockCorrection) -> None:
        """Keep what was made of a block."""


@dataclass(frozen=True)
class BlockCorrection:
    """One block's outcome: what it keeps, its corrected tensors and what was done.

    ``tensors`` are by their names inside the block: ``self_attn.o_proj.weight`` and
    ``mlp.down_proj.weight`` with the kept columns alone, biases, and with the kept rows q_proj,
    k_proj and v_proj where what they read is mapped, v_proj, up_proj and gate_proj where they were
    fitted;
    all in the source's dtype. Those of a sublayer that stays as it is are not among them.
    """

    plan: BlockPlan
    tensors: dict[str, Tensor]
    record: BlockRecord


def compensate(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    windows: Division,
    computing: Computing,
    compensation: Compensation,
    options: CompensationOptions,
    folder: Path | None = None,
    progress: Progress | None = None,
    room: float = math.inf,
) -> Iterator[BlockCorrection]:
    """Correct the blocks of a plan, one after the other.

    ``folder`` is for hidden states that memory has no room for, ``room`` what may be held in bytes
    beside all else for speed alone. Blocks that ``progress`` has are run and not fitted again.
    Raises InvalidInput for too few tokens, naming how many are needed, for a compensation that does
    not exist, and where activations are not finite.
    """
    samples = len(windows.fitted) + len(windows.held)
    check_compensation(checkpoint, samples, windows.fitted.shape[1], compensation, options)
    engine = _Engine(checkpoint, plan, windows, computing, compensation, options, folder, room)
    layers = checkpoint.shape.num_hidden_layers
    for block in track(engine.loop.blocks(), "compensate blocks", layers):
        done = progress.load(block.index) if progress else None
        if done is None:
            done = engine.correct(block)
            if progress:
                progress.save(done)
        else:
            engine.replay(block, done)
        yield done


def check_known(name: str) -> None:
    """Raise InvalidInput for a compensation that does not exist."""
    if name not in COMPENSATIONS:
        known = ", ".join(COMPENSATIONS)
        raise InvalidInput(f"compensation {name!r} is unknown; known: {known}")


def check_compensation(
    checkpoint: Checkpoint,
    samples: int,
    seqlen: int,
    compensation: Compensation,
    options: CompensationOptions,
) -> None:
    """Raise InvalidInput for what can be seen to fail before any work (see :func:`compensate`)."""
    check_known(compensation)
    if checkpoint.shape.num_experts and compensation not in OF_EXPERTS:
        raise InvalidInput(
            f"compensation {compensation} is of o_proj and of one down_proj a block, and this "
            f"model's FFNs are made of experts; use compensation {', '.join(OF_EXPERTS)}"
        )
    if (compensation, options.bias) == ("bias", "off"):
        raise InvalidInput("compensation bias with the option bias=off has nothing to correct")
    if samples < options.least_windows:
        raise InvalidInput(
            f"compensation needs at least {options.least_windows} samples, one of them held out; "
            f"{samples} given"
        )
    check_tokens(checkpoint.shape, samples, seqlen, options.held_out)


class _Engine:
    """The streams that all blocks share."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: PruningPlan,
        windows: Division,
        computing: Computing,
        compensation: Compensation,
        options: CompensationOptions,
        folder: Path | None,
        room: float = math.inf,
    ) -> None:
        self.room = room
        self.checkpoint, self.plan = checkpoint, plan
        self.compensation, self.options = compensation, options
        self.loop = computing.loop(checkpoint)
        spilled = None if computing.resident else folder

        def streams(windows: Tensor, name: str) -> Streams:
            return Streams(self.loop, windows, options.sequential, spilled and spilled / name)

        self.fitted, self.held = streams(windows.fitted, "fitted"), streams(windows.held, "held")
        self.drawn = [streams(windows.drawn, "drawn")] if len(windows.drawn) else []
        self.all = [self.fitted, *self.drawn, self.held]

    @torch.no_grad()
    def correct(self, block: LoopBlock) -> BlockCorrection:
        """Fit, compare and fix one block, and move the streams behind it."""
        pruned = PrunedBlock(self.checkpoint, block, self.plan.blocks[block.index])
        held_out = HeldOut(self.held, pruned.dense)
        given = self.compensation, self.options, self.room
        fit = BlockFit(pruned, held_out, self.fitted, self.drawn, *given)
        fit.correct_attention()
        fit.correct_ffn()
        return self._finished(fit, held_out)

    def replay(self, block: LoopBlock, done: BlockCorrection) -> None:
        """Move the streams behind a block that was corrected before."""
        pruned = PrunedBlock(self.checkpoint, block, self.plan.blocks[block.index])
        for streams in self.all:
            streams.advance_dense(pruned.dense)
            if self.options.sequential:
                streams.advance_pruned(pruned.corrected(done.plan, done.tensors))

    def _finished(self, fit: BlockFit, held_out: HeldOut) -> BlockCorrection:
        """Hold both sublayers together to none at all, and move the pruned streams on."""
        pruned = fit.pruned
        error = held_out.block_error(pruned.halves(fit.chosen))
        rows = pruned.read({})
        without = held_out.block_error(pruned.halves(fit.plain))
        if error > without and self.compensation in LADDER:
            # Each was better than simpler ones, but all together are not.
            fit.give_up()
            error = without
        else:
            pruned.read(rows)
        if self.options.sequential:
            halves = pruned.halves(fit.chosen)
            for streams in self.all:
                streams.advance_pruned(halves)
        record = BlockRecord(
            index=pruned.index,
            attention=fit.records.get(O_PROJ),
            ffn=fit.ffn_record,
            error_without=without,
            error=error,
        )
        return BlockCorrection(pruned.plan_of(fit.chosen), pruned.tensors(fit.chosen), record)
