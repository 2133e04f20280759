"""One block's fit: o_proj and v_proj, then down_proj and the FFN's rows behind what was chosen.

A matrix is fitted and compared, then the rows before it and the matrix behind them once more. What
is chosen is fixed before the next one's inputs are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from torch import Tensor

from bipline.compression.compensation.candidates import Candidate, Sublayer, uncorrected
from bipline.compression.compensation.collecting import Collector
from bipline.compression.compensation.drawn_windows import WEIGHED
from bipline.compression.compensation.expert_fit import ExpertSquares, fit_experts
from bipline.compression.compensation.fitting import chosen_groups, fitted, recorded
from bipline.compression.compensation.held_out import HeldOut
from bipline.compression.compensation.input_maps import fitted_map
from bipline.compression.compensation.kept_rows import fitted_rows
from bipline.compression.compensation.norms_behind import HeadShares, importance_of
from bipline.compression.compensation.options import PUBLISHED, CompensationOptions
from bipline.compression.compensation.streams import Batch, Streams, attention_half
from bipline.compression.compensation.trials import Trials
from bipline.compression.compensation.versions import EXPERTS, Choices, PrunedBlock
from bipline.compression.criteria.interface import Block
from bipline.model.halves import DOWN_PROJ, O_PROJ, UP_PROJ, V_PROJ, Halves
from bipline.values.compensation import Compensation, SublayerRecord

# Errors of versions of a matrix behind what a block makes before it.
ErrorsBehind = Callable[[Halves, Sequence[Candidate]], list[float]]

# The compensations that choose groups again.
CHOOSING = ("obs", *PUBLISHED)


class BlockFit:
    """What is chosen for one block, ``chosen`` and ``records``; ``plain`` is nothing corrected.

    ``fitted`` are the streams of the calibration's windows, ``drawn`` those of others: their dense
    stream enters the block, and is moved on by :meth:`correct_attention` and :meth:`correct_ffn`.
    ``room`` is what may be held in bytes for kept rows and experts to be fitted sooner.
    """

    def __init__(
        self,
        pruned: PrunedBlock,
        held_out: HeldOut,
        fitted: Streams,
        drawn: Sequence[Streams],
        compensation: Compensation,
        options: CompensationOptions,
        room: float = math.inf,
    ) -> None:
        self.pruned, self.records = pruned, dict[str, SublayerRecord]()
        self._held_out, self._compensation, self._options = held_out, compensation, options
        self._fitted, self._drawn, self._room = fitted, drawn, room
        bias = "on" if (options.bias, compensation) == ("auto", "bias") else options.bias
        # What the gains of norms over all heads are made of, where changing them helps.
        self._shares: HeadShares | None = None
        self._sublayers = {name: pruned.sublayer(name, bias) for name in pruned.matrices}
        self.plain = {name: uncorrected(each) for name, each in self._sublayers.items()}
        self.chosen: Choices = dict(self.plain)

    def correct_attention(self) -> None:
        """Fit o_proj and v_proj, and move the dense streams behind the block's attention."""
        dense, attention = self.pruned.dense, self._sublayers.get(O_PROJ)
        beta = self._map_inputs() if attention else None
        if attention is None or self._stays(attention):
            for streams in self._learned:
                streams.advance_attention(dense)
            if attention:
                self._leave(attention, self._held_out.attention_errors, beta)
            return
        weighed = self.pruned.criteria_block if self._compensation == "obs" else None
        shares = self.pruned.head_shares()
        collecting = self._collecting(O_PROJ, weighed, shares)
        self._fitted.advance_attention(dense, collecting.see, ffn=weighed is not None)
        attention = self._weighed(attention, collecting.importance())
        attention = self._with_choice(attention, collecting)
        for streams in self._drawn:
            streams.advance_attention(dense, collecting.see_attention)
        errors: ErrorsBehind = self._held_out.attention_errors
        if shares is not None:
            errors = self._sliced_errors
            self._shares = shares if self._gains_help(attention, shares) else None
        self._fix(attention, collecting, errors)
        del collecting
        self._fit_rows(V_PROJ, attention, errors)
        factors = self._put_gains(self.chosen[O_PROJ].kept)
        told = {"input_beta": beta, "norm_factors": tuple(factors.values()) or None}
        self.records[O_PROJ] = self.records[O_PROJ].model_copy(update=told)

    def correct_ffn(self) -> None:
        """Fit down_proj and the rows before it, or experts, behind the attention half as chosen.

        Moves the dense streams behind the block.
        """
        for streams in self._learned:
            streams.advance_ffn(self.pruned.dense)
        ffn = self._sublayers.get(DOWN_PROJ)
        if ffn is None and not self.pruned.keeps_experts:
            return
        pruned = self.pruned
        before = attention_half(
            pruned.halves(self.chosen) if self._options.sequential else pruned.dense
        )
        for streams in self._all:
            streams.pass_attention(before)
        del before
        if ffn is None:
            self._fit_experts()
            return
        if self._stays(ffn):
            self._leave(ffn, self._held_out.ffn_errors)
            return
        collecting = self._collecting(DOWN_PROJ)
        collecting.take(_entering([self._fitted], DOWN_PROJ))
        ffn = self._with_choice(self._weighed(ffn, None), collecting)
        collecting.take(_entering(self._drawn, DOWN_PROJ))
        errors = self._held_out.ffn_errors
        self._fix(ffn, collecting, errors)
        del collecting
        for _ in range(self._options.row_sweeps):
            error = self.records[DOWN_PROJ].least
            if pruned.dense.gated:
                self._fit_rows(UP_PROJ, ffn, errors)
            if self._options.activated_rows:
                self._fit_rows(pruned.dense.activated, ffn, errors)
            if not self.records[DOWN_PROJ].least < error:
                break  # another sweep would find the same

    @property
    def ffn_record(self) -> SublayerRecord | None:
        """What was done to the FFN: to its down_proj, or to those of all its experts."""
        return self.records.get(EXPERTS) or self.records.get(DOWN_PROJ)

    def give_up(self) -> None:
        """Leave the block as it was pruned."""
        self.chosen = self.plain
        for streams in self._all:
            streams.give_up_attention()
        self.records = {name: record.uncorrected() for name, record in self.records.items()}

    def _fit_experts(self) -> None:
        """Fit the down_projs of all experts together, where errors fall by it."""
        pruned, options = self.pruned, self._options
        half, sublayer = pruned.experts_half(), pruned.experts_sublayer()
        tried = Trials(partial(self._held_out.expert_errors, half), uncorrected(sublayer))
        if pruned.loses_experts or options.whole_matrices:
            entering = partial(_entering, self._learned, DOWN_PROJ)
            given = options.sequential, self._room
            fit_experts(
                ExpertSquares(half, pruned.dense, entering, *given), sublayer, options, tried
            )
        self.records[EXPERTS] = recorded(tried, sublayer)
        if tried.chosen.compensation != "none":
            self.chosen[EXPERTS] = tried.chosen

    def _stays(self, sublayer: Sublayer) -> bool:
        """Whether a matrix loses nothing and is not to make up for the drift either."""
        return sublayer.whole and not self._options.whole_matrices

    def _leave(self, sublayer: Sublayer, errors: ErrorsBehind, beta: float | None = None) -> None:
        """Leave a matrix as it is; the record says what error that has."""
        name = sublayer.name
        measured = partial(errors, self.pruned.reader(name))
        _, record = fitted(sublayer, None, self._compensation, self._options, measured)
        self.records[name] = record.model_copy(update={"input_beta": beta})

    @property
    def _all(self) -> list[Streams]:
        return [*self._learned, self._held_out.streams]

    @property
    def _learned(self) -> list[Streams]:
        return [self._fitted, *self._drawn]

    def _weighed(self, sublayer: Sublayer, importance: Tensor | None) -> Sublayer:
        """With the diagonal of D in front of the norm behind it, where OBS asks for one."""
        if self._compensation != "obs":
            return sublayer
        norm = self.pruned.norm_behind(sublayer.name)
        return replace(sublayer, importance=importance_of(norm, importance))

    def _sliced_errors(self, _reader: Halves, versions: Sequence[Candidate]) -> list[float]:
        """Errors of versions of o_proj where what goes changes what the others' norms divide by.

        Every version is run as it is sliced, with the dense FFN.
        """
        errors, before = [], self.pruned.read({})
        for version in versions:
            self.pruned.read(before)
            self._put_gains(version.kept)
            errors.append(self._held_out.block_error(self.pruned.behind_dense_ffn(version)))
        self.pruned.read(before)
        return errors

    def _gains_help(self, attention: Sublayer, shares: HeadShares) -> bool:
        """Whether other gains of norms over all heads lower the error of what the plan keeps."""
        if attention.whole or self._compensation in PUBLISHED:
            return False
        plain = [self.plain[O_PROJ]]
        [without] = self._sliced_errors(self.pruned.dense, plain)
        self._shares = shares
        [error] = self._sliced_errors(self.pruned.dense, plain)
        return error < without

    def _put_gains(self, kept: tuple[int, ...]) -> dict[str, float]:
        """Put the gains for these groups in place, where they help; the factors."""
        if self._shares is None:
            return {}
        factors = self._shares.factors(kept)
        self.pruned.read(self.pruned.with_gains(factors))
        return factors

    def _map_inputs(self) -> float | None:
        """Map what attention reads, where that helps; the share of the drift that is taken out."""
        options, pruned = self._options, self.pruned
        if not (options.sequential and options.input_maps and self._compensation in WEIGHED):
            return None
        linear_map = fitted_map(pruned.dense, self._learned, options.ridge)
        if linear_map is None:
            return None
        least, best = self._held_out.block_error(pruned.dense), None
        for beta in filter(None, options.betas):
            pruned.read(pruned.mapped(linear_map, beta))
            error = self._held_out.block_error(pruned.reader(O_PROJ))
            if error < least:
                least, best = error, beta
        pruned.read(pruned.mapped(linear_map, best) if best else {})
        return best

    def _fit_rows(self, rows: str, sublayer: Sublayer, errors: ErrorsBehind) -> None:
        """Fit the rows that stay before a matrix, and it behind them, where errors fall by it."""
        options, pruned, name = self._options, self.pruned, sublayer.name
        first, simpler = self.chosen[name], self.records[name]
        if not (options.sequential and options.row_steps and first.compensation in WEIGHED):
            return
        if pruned.dense.normed_behind:
            return  # behind a norm the stream is not linear in rows either
        if name == O_PROJ and not pruned.dense.tells_weights:
            return  # how an attention mixes rows of v_proj must be known
        entering = partial(_entering, self._learned, name)
        held_out = partial(_entering, [self._held_out.streams], name)
        halves, steps = pruned.halves(self.chosen), options.row_steps
        change = fitted_rows(halves, rows, entering, options.ridge, steps, self._room, held_out)
        without = pruned.read(pruned.with_rows(self.chosen, rows, change))
        del halves, change
        collecting = self._collecting(name)
        collecting.take(entering())
        # The ridge is the one that was best before; the new rows are for all of the drift.
        betas = tuple(sorted({1.0 if first.beta is None else first.beta, 1.0}))
        few = {"ridge": first.ridge, "ridge_factors": (1.0,), "betas": betas}
        again = replace(sublayer, chosen=first.kept)
        self._fix(again, collecting, errors, options.model_copy(update=few))
        if self.records[name].least < simpler.least:
            self.records[name] = self.records[name].model_copy(update={"rows_fitted": True})
        else:
            self.chosen[name], self.records[name] = first, simpler
            pruned.read(without)

    def _fix(
        self,
        sublayer: Sublayer,
        collecting: Collector,
        errors: ErrorsBehind,
        options: CompensationOptions | None = None,
    ) -> None:
        """Choose a matrix's version by what was collected and by held-out errors."""
        name, moments = sublayer.name, collecting.moments(sublayer.intercept)
        measured = partial(errors, self.pruned.reader(name))
        self.chosen[name], self.records[name] = fitted(
            sublayer, moments, self._compensation, options or self._options, measured
        )

    def _with_choice(self, sublayer: Sublayer, collecting: Collector) -> Sublayer:
        """What OBS keeps, by what was collected so far."""
        if self._compensation not in CHOOSING:
            return sublayer
        moments = collecting.moments(sublayer.intercept)
        ridge, compensation = self._options.ridge, self._compensation
        return replace(sublayer, chosen=chosen_groups(sublayer, moments, ridge, compensation))

    def _collecting(
        self, name: str, weighed: Block | None = None, heads: HeadShares | None = None
    ) -> Collector:
        token_weights = self._compensation not in PUBLISHED
        reader, sequential = self.pruned.reader(name), self._options.sequential
        norm = self.pruned.norm_behind(name)
        return Collector(reader, name, sequential, weighed, token_weights, norm, heads)


def _entering(streams: Iterable[Streams], columns: str, first: int = 0) -> Iterator[Batch]:
    """What enters a matrix's half in the pruned stream, and what the dense stream is behind it.

    All micro-batches but the ``first`` so many.
    """
    batches = chain.from_iterable(each.batches(columns == DOWN_PROJ) for each in streams)
    return islice(batches, first, None)
