"""What a compress run tells a tracker: figures in groups, figures of the final model, curves.

Names are those of :mod:`bipline.values.figures`; a tracker groups them by what stands before ``/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bipline.values.figures import Figure, figures_of
from bipline.values.plan import FfnKind, PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.recovery import RecoveryRecord

Records = Mapping[str, EvaluationRecord]
# What curves call the units of an FFN.
UNITS: dict[FfnKind, str] = {
    "FFN channels": "ffn_channels",
    "experts": "experts",
    "channels of every expert": "expert_channels",
}
# Values by block or by step.
Curve = list[tuple[int, float]]


def metrics_of(
    records: Records, plan: PruningPlan, recovery: RecoveryRecord | None
) -> dict[str, float]:
    """Every figure of a compress run by group, such as ``pruned/perplexity.TEXT``.

    A standard error stands beside its figure under its name and ``.stderr``.
    """
    told = {
        "ratio/reached_blocks": plan.budget.reached_blocks,
        "ratio/reached_total": plan.budget.reached_total,
    }
    if recovery is not None:
        told["recovery/accepted"] = float(recovery.accepted)
    for model in records:
        told |= _named(_figures(records, model), f"{model}/")
    return told


def final_metrics(records: Records, packaged: str) -> dict[str, float]:
    """The figures of the packaged model under plain names, with standard errors."""
    return _named(_figures(records, packaged))


def curves_of(plan: PruningPlan, recovery: RecoveryRecord | None = None) -> dict[str, Curve]:
    """What every block keeps, its error without and with compensation; the training's losses."""
    units = [(index, float(plan.blocks[index].told_widths[1])) for index in plan.counted_blocks]
    attention = plan.attention_kind.replace(" ", "_")
    ffn = UNITS[plan.ffn_kind]
    curves = {
        f"blocks/{attention}": _by_block(block.attention_units for block in plan.blocks),
        f"blocks/{ffn}": units,
    }
    if record := plan.compensated:
        curves["blocks/error_without"] = _by_block(each.error_without for each in record.blocks)
        curves["blocks/error"] = _by_block(each.error for each in record.blocks)
    points = recovery.curve if recovery else ()
    for name in ("loss", "learning_rate", "validation"):
        told = [(point.step, getattr(point, name)) for point in points]
        if found := [(step, value) for step, value in told if value is not None]:
            curves[f"recovery/{name}"] = found
    return curves


def _by_block(values: Iterable[float]) -> Curve:
    return [(block, float(value)) for block, value in enumerate(values)]


def _figures(records: Records, model: str) -> Iterable[Figure]:
    dense = None if model == "dense" else records.get("dense")
    return figures_of(records[model], dense).values()


def _named(figures: Iterable[Figure], prefix: str = "") -> dict[str, float]:
    told = {}
    for figure in figures:
        told[f"{prefix}{figure.name}"] = figure.value
        if figure.error is not None:
            told[f"{prefix}{figure.name}.stderr"] = figure.error
    return told
