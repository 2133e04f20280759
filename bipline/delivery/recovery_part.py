"""The report's part about recovery: what the training did, and its losses by step."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from bipline.delivery.curves import Curve, Frame, Point, curves_picture, swatch
from bipline.delivery.page import figure, flat, joined, plain, table
from bipline.values.figures import perplexity_text
from bipline.values.recovery import RecoveryRecord


def recovery_told(recovery: RecoveryRecord) -> tuple[str, Markup]:
    """A sentence, then the losses and everything that the record holds."""
    after = recovery.held_out_perplexity_after
    rows = [
        ["accepted", "yes" if recovery.accepted else "no"],
        ["reason", recovery.reason],
        ["held-out perplexity before", perplexity_text(recovery.held_out_perplexity_before)],
        ["held-out perplexity after", "" if after is None else perplexity_text(after)],
        ["tokens trained on", f"{recovery.tokens:,}"],
        ["logits moved by merging, of the largest", plain(recovery.merge_difference)],
        *flat(_told(recovery), ""),
        *flat(recovery.recipe, "recipe"),
    ]
    kind = recovery.recipe.get("kind", "lora")
    lead = f"A training ({kind}), merged into the weights and kept only where it helped."
    return lead, joined([*_losses(recovery), table(rows, caption="What was done, and what came")])


def _losses(recovery: RecoveryRecord) -> list[Markup]:
    """The losses of the training by its steps, where the record tells of any."""
    told = {
        "training": [(point.step, point.loss) for point in recovery.curve],
        "windows set aside": [
            (point.step, point.validation)
            for point in recovery.curve
            if point.validation is not None
        ],
    }
    curves = [
        Curve(name, number, tuple(_step(name, *point) for point in points))
        for number, (name, points) in enumerate(told.items())
        if points
    ]
    if not curves:
        return []
    frame = Frame("losses of the training by step", "step", "loss, nats per token")
    best = recovery.best_step
    caption = "Loss by step." + (f" The weights of step {best:,} were kept." if best else "")
    legend = [(swatch(curve.number), curve.name) for curve in curves]
    return [figure("Training.", caption, curves_picture(curves, frame), legend)]


def _step(name: str, step: int, loss: float) -> Point:
    return Point(step, loss, loss, loss, f"{name}, step {step:,}: {loss:.4f}")


def _told(recovery: RecoveryRecord) -> dict[str, Any]:
    """What newer records tell, where they do."""
    told = recovery.model_dump(
        include={"difference", "held_out_perplexity_dense", "best_step", "last_good_step"}
    )
    return {name: value for name, value in told.items() if value is not None}
