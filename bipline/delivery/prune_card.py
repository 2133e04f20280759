"""The card of a model that was pruned and not measured: README.md beside its weights.

It says what a machine can know at that moment. The dense model is told by its digest alone: a
directory, a bucket and a hub give the same bytes. A package's card names where it came from.
"""

from __future__ import annotations

from pathlib import Path

from bipline.delivery.card import removed_text
from bipline.delivery.card_metadata import card_text
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


def write_prune_card(
    model: ResolvedModel, plan: PruningPlan, dense: tuple[int, int], path: Path
) -> None:
    """Write the card; what lies at ``path`` already, the README of shipped code, becomes its end.

    ``dense`` are attention groups and FFN channels, or experts, of the dense model.
    """
    nameless = model.model_copy(update={"source": "", "revision": None, "licence": None})
    shipped = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    parts = [
        _opening(plan),
        removed_text(plan, dense),
        f"#{shipped}" if shipped else LOADING,
        LIMITATIONS,
        _provenance(plan),
    ]
    write_text(path, card_text("\n\n".join(parts), nameless, plan))


def _opening(plan: PruningPlan) -> str:
    budget = plan.budget
    return (
        f"# A model, pruned by {percent(budget.reached_blocks)}\n\n"
        f"Whole {plan.attention_kind}, {plan.ffn_kind} or blocks were removed: "
        f"{percent(budget.reached_blocks)} of the linear weights of the decoder blocks and "
        f"{percent(budget.reached_total)} of all parameters. It was not trained afterwards."
    )


def _provenance(plan: PruningPlan) -> str:
    return "\n".join(
        [
            "## Where it comes from",
            "",
            f"* tensors of the dense model: `{plan.tensor_digest}`",
            f"* plan: `{plan.digest}`",
        ]
    )
