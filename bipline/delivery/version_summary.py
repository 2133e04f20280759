"""What a registered version says of itself, in markdown: the card in a few lines."""

from __future__ import annotations

from collections.abc import Mapping

from bipline.delivery.card import as_code, escaped, markdown_table
from bipline.delivery.contents import portable_source
from bipline.values.figures import percent
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import ResolvedModel


def version_summary(
    records: Mapping[str, EvaluationRecord], plan: PruningPlan, packaged: str, model: ResolvedModel
) -> str:
    """Model, method, figures beside the dense model's, licence: a start, with the card for more."""
    method = f"Chosen by criterion `{plan.criterion}`, allocation `{plan.allocation}`, "
    method += f"compensation `{plan.compensation}`"
    licence = escaped(model.licence) if model.licence else "unknown"
    return "\n\n".join(
        [
            f"**{_linked(model)}, pruned by {percent(plan.budget.reached_blocks)}** of its blocks' "
            f"linear weights ({percent(plan.budget.reached_total)} of all). {method}; the "
            f"{packaged} model is the one packaged. Licence: {licence}.",
            "\n".join(markdown_table(records, packaged)),
        ]
    )


def base_model(model: ResolvedModel) -> str:
    """The dense model's name, without the path it was read from, and its revision."""
    name = portable_source(model.source)
    revision = f"@{model.revision}" if model.revision else ""
    return f"{name.partition('@')[0]}{revision}" if revision else name


def _linked(model: ResolvedModel) -> str:
    source = portable_source(model.source)
    if not source.startswith("hf:"):
        return as_code(source)
    name = source.removeprefix("hf:").partition("@")[0]
    return f"[{escaped(name)}](https://huggingface.co/{name})"
