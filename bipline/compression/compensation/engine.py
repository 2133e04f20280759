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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from bipline.compression.compensation.held_out import HeldOut
from bipline.compression.compensation.input_maps import fitted_map
from bipline.compression.compensation.kept_rows import fitted_rows
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import Streams, attention_half
from bipline.compression.compensation.tokens import check_tokens
from bipline.compression.compensation.versions import Choices, PrunedBlock
from bipline.compression.computing import Computing
from bipline.compression.criteria.interface import Block
from bipline.model.block_loop import Block as LoopBlock
from bipline.model.checkpoint import Checkpoint
from bipline.model.halves import DOWN_PROJ, O_PROJ, Halves

# Errors of versions of a matrix behind what a block makes before it.
ErrorsBehind = Callable[[Halves, Sequence[Candidate]], list[float]]


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
    def _learned(self) -> list[Streams]:
        return [self.fitted, *self.drawn]

    @torch.no_grad()
    def correct(self, block: LoopBlock) -> BlockCorrection:
        """Fit, compare and fix one block, and move the streams behind it."""
        pruned = PrunedBlock(self.checkpoint, block, self.plan.blocks[block.index])
        dense, sublayers = pruned.dense, self._sublayers(pruned)
        held_out = HeldOut(self.held, dense)
        beta = self._map_inputs(pruned, held_out) if O_PROJ in sublayers else None
        plain = {name: uncorrected(sublayer) for name, sublayer in sublayers.items()}
        chosen: Choices = dict(plain)
        records: dict[str, SublayerRecord] = {}
        if attention := sublayers.get(O_PROJ):
            self._correct_attention(pruned, attention, held_out, chosen, records)
            records[O_PROJ] = records[O_PROJ].model_copy(update={"input_beta": beta})
        else:
            for streams in self._learned:
                streams.advance_attention(dense)
        for streams in self._learned:
            streams.advance_ffn(dense)
        if ffn := sublayers.get(DOWN_PROJ):
            self._correct_ffn(pruned, ffn, held_out, chosen, records)
        return self._finished(pruned, held_out, plain, chosen, records)

    def _correct_attention(
        self,
        pruned: PrunedBlock,
        attention: Sublayer,
        held_out: HeldOut,
        chosen: Choices,
        records: dict[str, SublayerRecord],
    ) -> None:
        """Fit o_proj and v_proj, and move the dense streams behind the block's attention."""
        dense, weighed = pruned.dense, None
        if self.form == "obs":
            weighed = Block.of(self.checkpoint, pruned.index, dense.weights)
        reader = pruned.reader(O_PROJ)
        collecting = Collecting(reader, O_PROJ, self.options.sequential, weighed)
        self.fitted.advance_attention(dense, collecting.see, ffn=weighed is not None)
        attention = replace(attention, importance=collecting.importance())
        attention = self._with_choice(attention, collecting)
        for drawn in self.drawn:
            drawn.advance_attention(dense, collecting.see_attention)
        errors = held_out.attention_errors
        chosen[O_PROJ], records[O_PROJ] = self._fixed(
            attention, collecting, partial(errors, reader), self.options
        )
        del collecting
        self._fit_rows(pruned, attention, None, chosen, records, errors)

    def _correct_ffn(
        self,
        pruned: PrunedBlock,
        ffn: Sublayer,
        held_out: HeldOut,
        chosen: Choices,
        records: dict[str, SublayerRecord],
    ) -> None:
        """Fit down_proj and up_proj behind the attention half as it was chosen."""
        sequential, reader = self.options.sequential, pruned.reader(DOWN_PROJ)
        before = attention_half(pruned.halves(chosen) if sequential else pruned.dense)
        collecting = Collecting(reader, DOWN_PROJ, sequential)
        collecting.take(self._entering([self.fitted], before))
        ffn = self._with_choice(ffn, collecting)
        collecting.take(self._entering(self.drawn, before))
        errors = partial(held_out.ffn_errors, before)
        chosen[DOWN_PROJ], records[DOWN_PROJ] = self._fixed(
            ffn, collecting, partial(errors, reader), self.options
        )
        del collecting
        self._fit_rows(pruned, ffn, before, chosen, records, errors)

    def replay(self, block: LoopBlock, done: BlockCorrection) -> None:
        """Move the streams behind a block that was corrected before."""
        pruned = PrunedBlock(self.checkpoint, block, self.plan.blocks[block.index])
        for streams in (*self._learned, self.held):
            streams.advance_dense(pruned.dense)
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
            for streams in (*self._learned, self.held):
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
        linear_map = fitted_map(pruned.dense, self._learned, options.ridge)
        if linear_map is None:
            return None
        least, best = held_out.block_error(pruned.dense), None
        for beta in filter(None, options.betas):
            pruned.read(pruned.mapped(linear_map, beta))
            error = held_out.block_error(pruned.reader(O_PROJ))
            if error < least:
                least, best = error, beta
        pruned.read(pruned.mapped(linear_map, best) if best else {})
        return best

    def _fit_rows(
        self,
        pruned: PrunedBlock,
        sublayer: Sublayer,
        before: Halves | None,
        chosen: Choices,
        records: dict[str, SublayerRecord],
        errors: ErrorsBehind,
    ) -> None:
        """Fit the rows that stay before a matrix, and it behind them, where held-out errors fall.

        ``before`` is the attention half that the stream passes first, if any.
        """
        options, name = self.options, sublayer.name
        first, simpler = chosen[name], records[name]
        if not (options.sequential and options.row_steps and first.form in WEIGHED):
            return
        entering = partial(self._entering, self._learned, before)
        change = fitted_rows(
            pruned.halves(chosen), name, entering, options.ridge, options.row_steps
        )
        without = pruned.read(pruned.with_rows(chosen, name, change))
        del change
        collecting = Collecting(pruned.reader(name), name, options.sequential)
        collecting.take(entering())
        # The ridge is the one that was best before; the new rows are for all of the drift.
        betas = tuple(sorted({1.0 if first.beta is None else first.beta, 1.0}))
        few = {"ridge": first.ridge, "ridge_factors": (1.0,), "betas": betas}
        version, record = self._fixed(
            replace(sublayer, chosen=first.kept),
            collecting,
            partial(errors, pruned.reader(name)),
            options.model_copy(update=few),
        )
        if record.least < simpler.least:
            chosen[name] = version
            records[name] = record.model_copy(update={"rows_fitted": True})
        else:
            pruned.read(without)

    def _entering(
        self, streams: Iterable[Streams], before: Halves | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What enters a half in the pruned stream, and what the dense stream is behind it.

        ``before`` is the attention half that the stream passes first, if any.
        """
        for each in streams:
            for stream, target in each.pairs():
                yield before.after_attention(stream) if before else stream, target

    def _with_choice(self, sublayer: Sublayer, collecting: Collecting) -> Sublayer:
        """What OBS keeps, by what was collected so far."""
        if self.form != "obs":
            return sublayer
        moments = collecting.moments(sublayer.intercept)
        return replace(sublayer, chosen=chosen_groups(sublayer, moments, self.options.ridge))

    def _fixed(
        self,
        sublayer: Sublayer,
        collecting: Collecting,
        errors: Errors,
        options: CompensationOptions,
    ) -> tuple[Candidate, SublayerRecord]:
        moments = collecting.moments(sublayer.intercept)
        return fitted(sublayer, moments, self.form, options, errors)

    def _sublayers(self, pruned: PrunedBlock) -> dict[str, Sublayer]:
        bias = self.options.bias
        if (bias, self.form) == ("auto", "bias"):
            bias = "on"
        return {name: pruned.sublayer(name, bias) for name in pruned.matrices}
