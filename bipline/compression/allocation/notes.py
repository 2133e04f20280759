"""What a reader of a plan should know of how its widths came about, in sentences."""

from __future__ import annotations

from bipline.base.progress import note
from bipline.compression.allocation.attention_units import ASKED
from bipline.compression.allocation.problem import Problem
from bipline.compression.allocation.target import Target
from bipline.compression.allocation.widths import Widths
from bipline.compression.statistics import Scores
from bipline.model.families import heads_fixed


def notes_of(
    problem: Problem, widths: list[Widths], target: Target | None = None
) -> tuple[str, ...]:
    """What is told of these widths, in units of the problem's choices; noted as it is found."""
    within = any(each.shape.within_experts for each in problem.choices)
    told = (
        _whole_attention(problem, widths),
        _unseen_experts(problem.scores, within),
        f"{target.name}: at most {target.most:,}" if target else "",
    )
    found = tuple(filter(None, told))
    for text in found:
        note(text)
    return found


def _whole_attention(problem: Problem, widths: list[Widths]) -> str:
    """Why attention loses nothing, where it does not; empty where it does."""
    checkpoint, shape = problem.checkpoint, problem.checkpoint.shape
    if problem.scores.prunes != "groups" or any(each.queries_per_group for each in widths):
        return ""
    if problem.choices[-1].queries_per_group and not shape.num_experts:
        return f"{ASKED}: every group keeps all of them, and the FFN takes the whole ratio"
    if heads_fixed(checkpoint.config):
        why = f"{checkpoint.family.architecture} fixes its heads"
    elif shape.num_key_value_heads == 1:
        why = "one KV head (MQA)"
    elif shape.num_experts and {w.attention_groups for w in widths} == {shape.num_key_value_heads}:
        of = problem.choices[-1].shape
        kept = f"{widths[-1].ffn_units} of {of.ffn_units}"
        text = f"{of.ffn_kind} go first: every block keeps {kept}, and its attention whole"
        if shape.dense_blocks:
            text += f"; the first {shape.dense_blocks} have no experts and stay as they are"
        return text
    else:
        return ""
    return f"{why}: attention stays whole and the FFN takes the whole ratio"


def _unseen_experts(scores: Scores, within: bool) -> str:
    """The experts of which the calibration windows say nothing; empty where they speak of all.

    ``within``: channels of them go.
    """
    unseen = {
        index: (block.expert_tokens == 0).nonzero().flatten().tolist()
        for index, block in enumerate(scores.blocks)
        if block.expert_tokens is not None
    }
    told = [
        f"{', '.join(map(str, held))} of block {index}" for index, held in unseen.items() if held
    ]
    if not told:
        return ""
    by_weights = ": the weights alone say which channels they keep" if within else ""
    return (
        f"no calibration token was sent to experts {'; '.join(told)}: nothing is known of them, "
        f"and more samples may show their use{by_weights}"
    )
