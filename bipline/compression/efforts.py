"""Efforts: the options of allocation ``compensated`` and of least squares that each stands for.

``balanced`` is what these options are where nothing is said. What ``quick`` leaves out costs much
for what it wins, what ``best`` adds wins little for what it costs: docs/auto-experiments.md has
the figures.
"""

from __future__ import annotations

from typing import Any

from bipline.compression.compensation.drawn_windows import WEIGHED
from bipline.settings.line import Effort
from bipline.values.combination import UNIFORM, Choice, Method

Options = dict[str, Any]
WIDTHS: dict[Effort, Options] = {
    "quick": {"windows": 32, "blocks": 10},
    "balanced": {},
    "best": {"windows": 128, "margin": 1.5},
}
# A trial costs more than what it decides by where rows are fitted that are not in the end.
DIFFERING: dict[Effort, Options] = {
    **WIDTHS,
    "quick": {"windows": 32, "weighed": False, "row_steps": 0},
}
CORRECTIONS: dict[Effort, Options] = {
    "quick": {
        "ridge_factors": "1", "betas": "0,0.5,1", "input_maps": False, "row_steps": 0,
        "random_windows": 0.0, "generated_windows": 0.0,
    },
    "balanced": {},
    "best": {
        "row_steps": 8, "row_sweeps": 4, "whole_matrices": True,
        "random_windows": 0.25, "generated_windows": 0.25, "text_tokens": 65_536,
    },
}  # fmt: skip
# Where groups are chosen again, scores decide nothing, and these cost no pass.
UNSCORED = Choice(name="magnitude")


def of_effort(method: Method, layout: str, effort: Effort) -> Method:
    """A method of three parts with an effort's options, as far as none is given for them.

    What ``auto`` scores by is told by its alias: it may be another criterion.
    """
    allocation, compensation = method.allocation, method.compensation
    assert allocation and compensation  # noqa: S101
    updates: dict[str, Choice] = {}
    if allocation.name == "compensated":
        updates["allocation"] = _with(
            allocation, (WIDTHS if layout == UNIFORM else DIFFERING)[effort]
        )
    if compensation.name in WEIGHED:
        updates["compensation"] = _with(compensation, CORRECTIONS[effort])
    if effort == "quick" and method.alias and compensation.name == "obs":
        updates["criterion"] = UNSCORED
    return method.model_copy(update=updates)


def _with(choice: Choice, options: Options) -> Choice:
    return choice.model_copy(update={"options": {**options, **choice.options}})
