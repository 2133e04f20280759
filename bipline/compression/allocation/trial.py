"""Trial: what widths leave once the whole model is pruned and compensated with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bipline.base.progress import note
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.widths import Widths
from bipline.compression.compensation.drawn_windows import Division
from bipline.compression.compensation.engine import compensate
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import divided
from bipline.compression.compensation.tokens import least_samples
from bipline.model.shapes import ModelShape
from bipline.values.plan import Budget, PruningPlan


def fewer(shape: ModelShape, seqlen: int, most: int) -> int:
    """At most so many windows, and no fewer than a trial can fit on."""
    return max(most, least_samples(shape, seqlen, CompensationOptions().held_out))


def fewer_windows(problem: Problem, most: int) -> Problem:
    """The same on as many windows as :func:`fewer` says, evenly spread."""
    windows = problem.windows
    there, seqlen = windows.token_ids.shape
    count = fewer(problem.checkpoint.shape, seqlen, most)
    if count >= there:
        return problem
    places = [int((place + 0.5) * there / count) for place in range(count)]
    return replace(problem, measuring=replace(windows, token_ids=windows.token_ids[places]))


def trial_options(ridge: float) -> CompensationOptions:
    """What widths are tried with: a part of what ``obs`` does, which costs less."""
    drawn = {"random_windows": 0.0, "generated_windows": 0.0}
    return CompensationOptions(
        ridge=ridge,
        ridge_factors=(1.0,),
        betas=(0.0, 0.5, 1.0),
        input_maps=False,
        row_steps=0,
        **drawn,
    )


def of_least_left(
    problem: Problem, candidates: Sequence[Sequence[Widths]], ridge: float
) -> list[Widths]:
    """Of widths for all blocks, those that leave the least; a single candidate is not tried."""
    distinct = list(dict.fromkeys(map(tuple, candidates)))
    if len(distinct) == 1:
        return list(distinct[0])
    best = min(distinct, key=lambda widths: error_of(problem, widths, ridge))
    return list(best)


def error_of(problem: Problem, widths: Sequence[Widths], ridge: float) -> float:
    """Error of the last block's output on held-out windows, every block ``obs``, sequential.

    Behind an RMSNorm, so it is what the output weights see: 0 is the dense model's, 2 unrelated.
    One ridge and three shares of the drift are tried, on the calibration windows alone, which
    costs less than compensation itself.
    """
    windows, options = problem.windows, trial_options(ridge)
    fitted, held = divided(windows.token_ids, options.held_out)
    plan, given = _plan(problem, widths), Division(fitted, held, fitted[:0], fitted[:0])
    corrections = compensate(problem.checkpoint, plan, given, windows.computing, "obs", options)
    error = [correction.record.error for correction in corrections][-1]
    note(f"tried {_kept(widths)}: error of the final stream {error:.4f}")
    return error


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
