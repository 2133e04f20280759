"""The metadata of a model card, by huggingface_hub's own tools, as the hub reads it.

Results are in the model-index: a metric for each figure of quality, its standard error and the
digest of what it was measured on beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.values.figures import figures_of, title_of
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import ResolvedModel

# What a Hugging Face licence identifier looks like; anything else is a name.
LICENCE_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")
# Figures that tell of a model's quality; sizes and seconds are none of the hub's metrics.
METRICS = {"perplexity": "perplexity", "acc": "accuracy", "acc_norm": "accuracy"}
# Of the relations that the hub knows (adapter, finetune, merge, quantized), what changed weights
# and shapes of one base model without quantising them is nearest to this one.
RELATION = "finetune"


def card_text(
    body: str,
    model: ResolvedModel,
    plan: PruningPlan,
    record: EvaluationRecord | None = None,
    name: str = "",
) -> str:
    """A card with its metadata in front, read back by huggingface_hub; ``name`` is the model's.

    ``record`` is of the model that the card is about; without one there are no results. Raises
    ValueError where huggingface_hub refuses the metadata.
    """
    from huggingface_hub import ModelCard, ModelCardData

    results: dict[str, Any] = {}
    if record and (found := list(_results(record))):
        results = {"model_name": name, "eval_results": found}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["bipline", "structured-pruning", plan.criterion],
        **_licence(model.licence),
        **base_of(model.source),
        **results,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{body}\n"
    ModelCard(text)
    return text


def _licence(licence: str | None) -> dict[str, str]:
    if not licence:
        return {}
    if LICENCE_IDENTIFIER.fullmatch(licence.lower()):
        return {"license": licence.lower()}
    return {"license": "other", "license_name": licence}


def base_of(source: str) -> dict[str, str]:
    """The model on the hub that it was made from; a directory of a machine is none."""
    if not source.startswith("hf:"):
        return {}
    name = without_secrets(source).removeprefix("hf:").partition("@")[0]
    return {"base_model": name, "base_model_relation": RELATION}


def _results(record: EvaluationRecord) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    read = {**record.protocol.get("texts", {}), **record.protocol.get("tasks", {})}
    for name, figure in figures_of(record).items():
        kind, _, subject = name.partition(".")
        if kind not in METRICS:
            continue
        error = {} if figure.error is None else {"standard_error": figure.error}
        yield EvalResult(
            task_type="text-generation",
            dataset_type=subject,
            dataset_name=subject,
            dataset_args={"sha256": str(read[subject])} if subject in read else None,
            metric_type=METRICS[kind],
            metric_name=title_of(name),
            metric_value=figure.value,
            metric_args={**error, "protocol": record.protocol_digest},
        )
