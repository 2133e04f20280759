"""The card of a model that was pruned and not measured: README.md beside its weights.

It says what a machine can know at that moment. A local model is told by its digest alone, so that
a directory that was moved gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from bipline.delivery.card import as_code, escaped, removed_text
from bipline.delivery.card_metadata import base_of, card_text
from bipline.storage.directory import write_text
from bipline.values.figures import percent
from bipline.values.plan import PruningPlan
from bipline.values.resolution import ResolvedModel

LOADING = """## How to load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```"""
LIMITATIONS = """## Limitations

* Nothing had been measured when this was written: `bipline evaluate` does it. A package that holds
  this folder has figures in a README of its own.
* Pruning can take rare abilities first, which an average hardly shows. Measure what you need.
* The limits and the licence of the dense model hold for this one too."""


def told_origin(model: ResolvedModel) -> dict[str, str]:
    """What a card tells of where a model came from, besides digests; empty for nothing."""
    told = {**base_of(model.source), "revision": model.revision, "licence": model.licence}
    return {name: value for name, value in told.items() if value}


def write_prune_card(
    model: ResolvedModel, plan: PruningPlan, dense: tuple[int, int], path: Path
) -> None:
    """Write the card; what lies at ``path`` already, the README of shipped code, becomes its end.

    ``dense`` are attention groups and FFN channels of the dense model.
    """
    shipped = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    parts = [
        _opening(model, plan),
        removed_text(plan, dense),
        f"#{shipped}" if shipped else LOADING,
        LIMITATIONS,
        _provenance(model, plan),
    ]
    write_text(path, card_text("\n\n".join(parts), model, plan))


def _opening(model: ResolvedModel, plan: PruningPlan) -> str:
    budget, name = plan.budget, base_of(model.source).get("base_model", "A model")
    return (
        f"# {escaped(name)}, pruned by {percent(budget.reached_blocks)}\n\n"
        "Whole attention groups, FFN channels or blocks were removed: "
        f"{percent(budget.reached_blocks)} of the linear weights of the decoder blocks and "
        f"{percent(budget.reached_total)} of all parameters. It was not trained afterwards."
    )


def _provenance(model: ResolvedModel, plan: PruningPlan) -> str:
    told = told_origin(model)
    lines = [f"* {name.replace('_', ' ')}: {as_code(value)}" for name, value in told.items()]
    return "\n".join(
        [
            "## Where it comes from",
            "",
            *lines,
            f"* tensors of the dense model: `{plan.tensor_digest}`",
            f"* plan: `{plan.digest}`",
        ]
    )
