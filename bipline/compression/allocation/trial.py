"""Trial: what uniform widths leave once the whole model is pruned and compensated with them."""

from __future__ import annotations

from bipline.artifacts.plan import BlockPlan, Budget, PruningPlan
from bipline.artifacts.progress import note
from bipline.compression.allocation.problem import Problem, highest
from bipline.compression.allocation.widths import Widths
from bipline.compression.compensation.engine import compensate
from bipline.compression.compensation.options import CompensationOptions


def error_of(problem: Problem, widths: Widths, ridge: float) -> float:
    """Error of the last block's output on held-out windows, every block ``obs``, sequential.

    Behind an RMSNorm, so it is what the output weights see: 0 is the dense model's, 2 unrelated.
    One ridge and three shares of the drift are tried, a quarter of what compensation itself does.
    """
    windows = problem.windows
    options = CompensationOptions(ridge=ridge, ridge_factors=(1.0,), betas=(0.0, 0.5, 1.0))
    corrections = compensate(
        problem.checkpoint, _plan(problem, widths), windows.token_ids, windows.computing, "obs",
        options,
    )  # fmt: skip
    error = [correction.record.error for correction in corrections][-1]
    kept = f"{widths.attention_groups} groups and {widths.ffn_channels} channels"
    note(f"tried {kept}: error of the final stream {error:.4f}")
    return error


def _plan(problem: Problem, widths: Widths) -> PruningPlan:
    return PruningPlan(
        tensor_digest=problem.scores.tensor_digest,
        criterion=problem.scores.criterion,
        allocation="trial",
        budget=Budget(asked=problem.ratio, of="blocks", reached_blocks=0, reached_total=0),
        ffn_multiple=1,
        blocks=tuple(
            BlockPlan(
                attention_groups=highest(block.attention_groups, widths.attention_groups),
                ffn_channels=highest(block.ffn_channels, widths.ffn_channels),
            )
            for block in problem.scores.blocks
        ),
    )
