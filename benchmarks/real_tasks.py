"""Zero-shot answers of the rows on a real model: which were right, and the change against dense.

A line of the benchmark holds of every task one digit a question, 1 where it was answered right (by
normalised likelihood where the task has one, as its ``acc_norm``), so that two rows can be compared
question by question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist, fmean
from typing import Any

from bipline.values.paired import CONFIDENCE, paired_difference

# By task, a digit a question.
Answers = Mapping[str, str]


def answers_of(told: Mapping[str, Any]) -> dict[str, str]:
    """The answers out of what ``bipline evaluate --json`` wrote."""
    found = {}
    for name, items in told["items"]["tasks"].items():
        normed = told["tasks"][name].get("acc_norm") is not None
        choice = "choice_norm" if normed else "choice"
        found[name] = "".join(str(int(item[choice] == item["gold"])) for item in items)
    return found


def mean_accuracy(answers: Answers) -> float:
    """The mean over tasks of their accuracies."""
    return fmean(each.count("1") / len(each) for each in answers.values())


def mean_change(before: Answers, after: Answers) -> tuple[float, float]:
    """The change of :func:`mean_accuracy`, and how far its 95 % interval reaches to both sides.

    Of pairs of answers to the same questions; tasks are what they are, questions are drawn.
    Raises ValueError for answers to other questions.
    """
    if before.keys() != after.keys():
        raise ValueError(f"answers to {sorted(before)} and to {sorted(after)}")
    pairs = [
        paired_difference([int(each) for each in before[name]], [int(each) for each in after[name]])
        for name in before
    ]
    change = fmean(pair.difference for pair in pairs)
    error = math.sqrt(math.fsum((pair.stderr or 0.0) ** 2 for pair in pairs)) / len(pairs)
    return change, NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * error
