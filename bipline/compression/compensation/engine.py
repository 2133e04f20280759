"""Compensate: block by block, in order, the corrected matrices of a plan.

Of every block the attention half comes first. Its o_proj is fitted, compared and fixed, and only
then are the FFN's inputs collected, with attention pruned and corrected, and down_proj fitted.
Sequentially, inputs come from the blocks pruned before and targets from the dense model, so that
a block also corrects what those before it left (methods 5.5; Tyr-the-Pruner, arXiv 2503.09657,
finds this decisive). Otherwise every block is fitted on the dense model's own stream.

What stays is chosen on the calibration windows. Weights are fitted on these and on windows that
were drawn, so that a fit also holds for text that is unlike them (ours).

Memory holds two blocks, two streams of hidden states and one block's moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bipline.artifacts.compensation import FORMS, BlockRecord, Form, SublayerRecord
from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.plan import BlockPlan, PruningPlan
from bipline.artifacts.progress import track
from bipline.compression.compensation.candidates import Candidate, Sublayer, uncorrected
from bipline.compression.compensation.collecting import Collecting
from bipline.compression.compensation.drawn_windows import WEIGHED, Divided
from bipline.compression.compensation.fitting import Errors, chosen_groups, fitted
from bipline.compression.compensation.held_out import HeldOut, attention_half
from bipline.compression.compensation.input_maps import fitted_map
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import Streams
from bipline.compression.compensation.tokens import check_tokens
from bipline.compression.compensation.versions import Choices, PrunedBlock
from bipline.compression.computing import Computing
from bipline.compression.criteria.interface import Block
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import DOWN_PROJ, O_PROJ


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
    ``mlp.down_proj.weight`` with the kept columns alone, biases, and q_proj, k_proj and v_proj
    with the kept rows where what they read is mapped, all in the source's dtype. Those of a
    sublayer that stays as it is are not among them.
    """

    plan: BlockPlan
    tensors: dict[str, Tensor]
    record: BlockRecord


def compensate(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    windows: Divided,
    computing: Computing,
    form: Form,
    options: CompensationOptions,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[BlockCorrection]:
    """Correct the blocks of a plan, one after the other.

    ``folder`` is for hidden states that memory has no room for. Blocks that ``progress`` has are
    run and not fitted again.
    Raises InvalidInput for too few tokens, naming how many are needed, for an unknown form, and
    where activations are not finite.
    """
    samples = len(windows.fitted) + len(windows.held)
    check_compensation(checkpoint, samples, windows.fitted.shape[1], form, options)
    engine = _Engine(checkpoint, plan, windows, computing, form, options, folder)
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


def check_compensation(
    checkpoint: Checkpoint, samples: int, seqlen: int, form: Form, options: CompensationOptions
) -> None:
    """Raise InvalidInput for what can be seen to fail before any work (see :func:`compensate`)."""
    if form not in FORMS:
        raise InvalidInput(f"compensation {form!r} is unknown; known: {', '.join(FORMS)}")
    if (form, options.bias) == ("bias", "off"):
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
        windows: Divided,
        computing: Computing,
        form: Form,
        options: CompensationOptions,
        folder: Path | None,
    ) -> None:
        self.checkpoint, self.plan, self.form, self.options = checkpoint, plan, form, options
        self.loop = computing.loop(checkpoint)
        spilled = None if computing.resident else folder

        def streams(windows: Tensor, name: str) -> Streams:
            return Streams(self.loop, windows, options.sequential, spilled and spilled / name)

        self.fitted, self.held = streams(windows.fitted, "fitted"), streams(windows.held, "held")
        self.drawn = [streams(windows.drawn, "drawn")] if len(windows.drawn) else []

    @property
    def _all(self) -> list[Streams]:
        return [self.fitted, *self.drawn, self.held]

    @torch.no_grad()
    def correct(self, block: LoopBlock) -> BlockCorrection:
        """Fit, compare and fix one block, and move the streams behind it."""
        pruned = PrunedBlock(self.checkpoint, block, self.plan.blocks[block.index])
        dense, sublayers = pruned.dense, self._sublayers(pruned)
        held_out = HeldOut(self.held, dense)
        beta = self._map_inputs(pruned, held_out) if O_PROJ in sublayers else None
        collecting = self._collecting(pruned, frozenset(sublayers))
        self.fitted.advance_dense(dense, collecting.see)
        plain: Choices = {name: uncorrected(sublayer) for name, sublayer in sublayers.items()}
        chosen, records = dict(plain), {}
        before = dense
        if attention := sublayers.get(O_PROJ):
            attention = replace(attention, importance=collecting.importance())
            attention = self._with_choice(attention, collecting)
        for drawn in self.drawn:
            drawn.advance_dense(dense, collecting.see_attention)
        if attention:
            reader = pruned.reader
            chosen[O_PROJ], record = self._fixed(
                attention,
                collecting,
                lambda versions: held_out.attention_errors(reader, versions),
            )
            records[O_PROJ] = record.model_copy(update={"input_beta": beta})
        if self.options.sequential:
            before = attention_half(pruned.halves(chosen))
        if ffn := sublayers.get(DOWN_PROJ):
            collecting.see_ffn(self.fitted, before)
            ffn = self._with_choice(ffn, collecting)
            for drawn in self.drawn:
                collecting.see_ffn(drawn, before)
            chosen[DOWN_PROJ], records[DOWN_PROJ] = self._fixed(
                ffn, collecting, lambda versions: held_out.ffn_errors(before, versions)
            )
        return self._finished(pruned, held_out, plain, chosen, records)

    def replay(self, block: LoopBlock, done: BlockCorrection) -> None:
        """Move the streams behind a block that was corrected before."""
        pruned = PrunedBlock(self.checkpoint, block, self.plan.blocks[block.index])
        for streams in self._all:
            streams.advance_dense(pruned.dense, lambda _seen: None)
            if self.options.sequential:
                streams.advance_pruned(pruned.corrected(done.plan, done.tensors))

    def _finished(
        self,
        pruned: PrunedBlock,
        held_out: HeldOut,
        plain: Choices,
        chosen: Choices,
        records: dict[str, SublayerRecord],
    ) -> BlockCorrection:
        """Hold both sublayers together to none at all, and move the pruned streams on."""
        error = held_out.block_error(pruned.halves(chosen))
        maps = pruned.read({})
        without = held_out.block_error(pruned.halves(plain))
        if error > without:
            # Each was better than its simpler forms, but all together are not.
            chosen, error = plain, without
            records = {name: record.uncorrected() for name, record in records.items()}
        else:
            pruned.read(maps)
        if self.options.sequential:
            halves = pruned.halves(chosen)
            for streams in self._all:
                streams.advance_pruned(halves)
        record = BlockRecord(
            index=pruned.index,
            attention=records.get(O_PROJ),
            ffn=records.get(DOWN_PROJ),
            error_without=without,
            error=error,
        )
        return BlockCorrection(pruned.plan_of(chosen), pruned.tensors(chosen), record)

    def _map_inputs(self, pruned: PrunedBlock, held_out: HeldOut) -> float | None:
        """Map what attention reads, where that helps; the share of the drift that is taken out."""
        options = self.options
        if not (options.sequential and options.input_maps and self.form in WEIGHED):
            return None
        linear_map = fitted_map(pruned.dense, [self.fitted, *self.drawn], options.ridge)
        if linear_map is None:
            return None
        least, best = held_out.block_error(pruned.dense), None
        for beta in filter(None, options.betas):
            pruned.read(pruned.mapped(linear_map, beta))
            error = held_out.block_error(pruned.reader)
            if error < least:
                least, best = error, beta
        pruned.read(pruned.mapped(linear_map, best) if best else {})
        return best

    def _with_choice(self, sublayer: Sublayer, collecting: Collecting) -> Sublayer:
        """What OBS keeps, by what was collected so far."""
        if self.form != "obs":
            return sublayer
        moments = collecting.moments(sublayer.name, sublayer.intercept)
        return replace(sublayer, chosen=chosen_groups(sublayer, moments, self.options.ridge))

    def _fixed(
        self, sublayer: Sublayer, collecting: Collecting, errors: Errors
    ) -> tuple[Candidate, SublayerRecord]:
        moments = collecting.moments(sublayer.name, sublayer.intercept)
        result = fitted(sublayer, moments, self.form, self.options, errors)
        collecting.forget(sublayer.name)
        return result

    def _sublayers(self, pruned: PrunedBlock) -> dict[str, Sublayer]:
        bias = self.options.bias
        if (bias, self.form) == ("auto", "bias"):
            bias = "on"
        return {name: pruned.sublayer(name, bias) for name in pruned.matrices}

    def _collecting(self, pruned: PrunedBlock, wanted: frozenset[str]) -> Collecting:
        weighed = None
        if self.form == "obs" and O_PROJ in wanted:
            weighed = Block.of(self.checkpoint, pruned.index, pruned.dense.weights)
        return Collecting(pruned.reader, wanted, self.options.sequential, weighed)
