"""Trial: what widths leave once the whole model is pruned and compensated with them.

It is told by the loss on calibration windows that nothing was fitted on. How near the final stream
or the predictions are to the dense model's says less: on SmolLM2-135M both held blocks that differ
for the better ones where their perplexity was higher (docs/auto-experiments.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bipline.base.progress import note
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.restored_blocks import (
    corrected_blocks,
    restored_losses,
    run_in_parts,
)
from bipline.compression.allocation.widths import Widths
from bipline.compression.compensation.drawn_windows import Division
from bipline.compression.compensation.engine import BlockCorrection, compensate
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import divided, evenly_spread
from bipline.compression.compensation.tokens import least_samples
from bipline.model.block_loop import BlockLoop
from bipline.model.halves import Halves
from bipline.model.hidden_states import HiddenStates
from bipline.model.shapes import ModelShape
from bipline.values.plan import Budget, PruningPlan

# Windows that candidates are compared on, beside each that they are fitted on.
COMPARED = 2
# Windows that blocks are restored on: each runs once for every block, and all lie in memory.
RESTORED = 32
# Standard errors by which blocks that differ must be better than alike ones: a loss on few windows
# has chance in it, and blocks that are alike load everywhere.
SURELY = 2.0


def fewer(shape: ModelShape, seqlen: int, most: int) -> int:
    """At most so many windows, and no fewer than a trial can fit on."""
    return max(most, least_samples(shape, seqlen, CompensationOptions().held_out))


def fewer_windows(problem: Problem, most: int) -> Problem:
    """The same on as many windows as :func:`fewer` says, evenly spread."""
    windows = problem.windows
    places = _spread(problem, most)
    return replace(problem, measuring=replace(windows, token_ids=windows.token_ids[places]))


def _spread(problem: Problem, most: int) -> list[int]:
    there, seqlen = problem.windows.token_ids.shape
    return evenly_spread(there, fewer(problem.checkpoint.shape, seqlen, most))


def compared_windows(problem: Problem, most: int, held_out: float) -> Tensor:
    """Windows that a trial on :func:`fewer_windows` fits nothing on, ``[windows, seqlen]``.

    Those of its own that are held out, and up to :data:`COMPARED` times as many as it has of the
    others.
    """
    token_ids, places = problem.windows.token_ids, _spread(problem, most)
    held = divided(token_ids[places], held_out)[1]
    return torch.cat([held, token_ids[_compared(problem, places)]])


def restored_windows(problem: Problem, most: int, held_out: float) -> Tensor:
    """At most :data:`RESTORED` windows that a trial neither fits nor compares on.

    ``[windows, seqlen]``; where there are none, some of those that it compares.
    """
    token_ids, places = problem.windows.token_ids, _spread(problem, most)
    used = {*places, *_compared(problem, places)}
    others = [place for place in range(len(token_ids)) if place not in used]
    left = token_ids[others] if others else compared_windows(problem, most, held_out)
    return left[evenly_spread(len(left), RESTORED)]


def _compared(problem: Problem, places: Sequence[int]) -> list[int]:
    """Of windows that a trial does not have those that it is compared on."""
    others = sorted({*range(len(problem.windows.token_ids))} - {*places})
    return [others[place] for place in evenly_spread(len(others), COMPARED * len(places))]


def trial_options(ridge: float, row_steps: int = 0) -> CompensationOptions:
    """What widths are tried with: a part of what ``obs`` does, which costs less.

    What kept rows make up for makes up for part of what a choice of widths costs, so where they
    are fitted in the end a choice that costs as much as they do is tried with them.
    """
    drawn = {"random_windows": 0.0, "generated_windows": 0.0}
    return CompensationOptions(
        ridge=ridge,
        ridge_factors=(1.0,),
        betas=(0.0, 0.5, 1.0),
        input_maps=row_steps > 0,
        row_steps=row_steps,
        **drawn,
    )


@dataclass(frozen=True)
class Trials:
    """Trials of one problem's widths, each made once; fitted on at most ``most`` windows."""

    problem: Problem
    most: int
    options: CompensationOptions
    known: dict[tuple[Widths, ...], Tensor] = field(default_factory=dict)

    def losses(self, widths: Sequence[Widths]) -> Tensor:
        """What they leave: see :func:`losses_left`."""
        tried = tuple(widths)
        if tried not in self.known:
            self.known[tried] = losses_left(self.problem, tried, self.most, self.options)
        return self.known[tried]

    def gains(self, widths: Sequence[Widths]) -> Tensor:
        """What restoring each block wins, in nats, once all have these widths: ``[blocks]``."""
        left, restored = gains_left(self.problem, widths, self.most, self.options)
        self.known[tuple(widths)] = left
        return restored


def of_least_left(trials: Trials, candidates: Sequence[Sequence[Widths]]) -> list[Widths]:
    """Of widths for all blocks, those that leave the least loss; one alone is not tried.

    Where candidates are alike in all blocks and others are not, one that is not alike must be
    better by :data:`SURELY` standard errors, over the same windows.
    """
    distinct = list(dict.fromkeys(map(tuple, candidates)))
    if len(distinct) == 1:
        return list(distinct[0])
    losses = {widths: trials.losses(widths) for widths in distinct}

    def least(among: Sequence[tuple[Widths, ...]]) -> tuple[Widths, ...]:
        return min(among, key=lambda widths: float(losses[widths].mean()))

    best, alike = least(distinct), [each for each in distinct if len(set(each)) == 1]
    if alike and not surely_less(losses[best], losses[least(alike)]):
        best = least(alike)
    return list(best)


def surely_less(losses: Tensor, others: Tensor) -> bool:
    """Whether losses of windows lie below others' of the same windows by more than chance."""
    differences = (losses - others).double()
    if len(differences) < 2:
        return False
    error = float(differences.std()) / math.sqrt(len(differences))
    return float(differences.mean()) < -SURELY * error


def losses_left(
    problem: Problem, widths: Sequence[Widths], most: int, trial: CompensationOptions
) -> Tensor:
    """The mean loss in nats of each of the :func:`compared_windows`, every block ``obs``.

    Fitted sequentially, on the calibration windows alone.
    """
    plan, corrections = _corrected(problem, widths, most, trial)
    compared = compared_windows(problem, most, trial.held_out)
    losses = _losses(problem, plan, corrections, compared)
    note(f"tried {_kept(widths)}: {float(losses.mean()):.4f} nats a token")
    return losses


def gains_left(
    problem: Problem, widths: Sequence[Widths], most: int, trial: CompensationOptions
) -> tuple[Tensor, Tensor]:
    """What :func:`losses_left` says, and what restoring each block wins, in nats: ``[blocks]``.

    The latter on :func:`restored_windows`.
    """
    plan, corrections = _corrected(problem, widths, most, trial)
    compared = compared_windows(problem, most, trial.held_out)
    others = restored_windows(problem, most, trial.held_out)
    windows, few = torch.cat([compared, others]), len(others)
    losses, restored = restored_losses(problem, plan, corrections, windows, few)
    left = losses[: len(compared)]
    note(f"tried {_kept(widths)}: {float(left.mean()):.4f} nats a token")
    return left, (losses[-few:] - restored).double().mean(1)


def _corrected(
    problem: Problem, widths: Sequence[Widths], most: int, trial: CompensationOptions
) -> tuple[PruningPlan, Iterator[BlockCorrection]]:
    """The plan of a trial, and its blocks as they are fitted one after the other."""
    few = fewer_windows(problem, most).windows
    fitted, held = divided(few.token_ids, trial.held_out)
    plan, given = _plan(problem, widths), Division(fitted, held, fitted[:0], fitted[:0])
    return plan, compensate(problem.checkpoint, plan, given, few.computing, "obs", trial)


@torch.no_grad()
def _losses(
    problem: Problem, plan: PruningPlan, corrections: Iterable[BlockCorrection], windows: Tensor
) -> Tensor:
    """Mean losses ``[windows]`` of the model that corrected blocks make."""
    loop = problem.windows.computing.loop(problem.checkpoint)
    states = loop.states(windows, None, resident=True)
    loop.embed_into(states, windows)
    for _, corrected in corrected_blocks(loop, plan, corrections):
        _run_through(states, loop, corrected)
    return loop.negative_log_likelihood(states, windows).mean(1)


def _run_through(states: HiddenStates, loop: BlockLoop, block: Halves) -> None:
    """Move windows through a block."""

    def step(_: int, chunk: Tensor) -> Tensor:
        return run_in_parts(loop, block, chunk.to(loop.device))

    states.advance(step)


def _kept(widths: Sequence[Widths]) -> str:
    """What stays, as users read it: of each block, or over all of them where they differ."""
    groups = [each.attention_groups for each in widths]
    channels = [each.ffn_units for each in widths]
    if len(set(widths)) == 1:
        queries = widths[0].queries_per_group
        heads = f" of {queries} query heads" if queries else ""
        return f"{groups[0]} groups{heads} and {channels[0]} channels"
    return f"{sum(groups)} groups and {sum(channels)} channels over all blocks"


def _plan(problem: Problem, widths: Sequence[Widths]) -> PruningPlan:
    return PruningPlan(
        tensor_digest=problem.scores.tensor_digest,
        criterion=problem.scores.criterion,
        allocation="trial",
        layout=problem.layout,
        budget=Budget(asked=problem.ratio, of="blocks", reached_blocks=0, reached_total=0),
        ffn_multiple=1,
        blocks=problem.plans(widths),
    )
