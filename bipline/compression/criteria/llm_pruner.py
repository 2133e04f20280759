"""``llm-pruner``: LLM-Pruner's Taylor importance (arXiv 2305.11627), from its code.

over the weights w of a group, with the gradient g of the mean loss and the diagonal Fisher F:

element-first:   s = sum |w g|
element-second:  s = sum |w^2 F|
element-mixed:   s = sum |w g - 1/2 w^2 F|
vector:          s = sum over the group's rows and columns of |sum w g|

An attention group's weights are its rows of q_proj, k_proj and v_proj and its columns of o_proj;
an FFN channel's are its rows of gate_proj and up_proj and its column of down_proj. F is the mean
over calibration windows of squared gradients of each window's own loss.

Source: all of this, and that a group is the sum over what is coupled (``grouping_strategy sum``),
is established: it is read in the code (horseee/LLM-Pruner), where the forms are called param_first,
param_second, param_mix and vectorize. param_first is the default here as in its llama3.py; an older
hf_prune.py has param_mix. The paper's tables call the first two Element^1 and Element^2.

Different here: a row's bias counts too, as a vector of one weight (that code's models have none).
With grouped queries that code adds query head h to KV head h modulo their number; here a query head
goes with the KV head it reads. A window is a sample. Gradients take two passes, forward and
backward, of the windows one at a time: ``micro_batch`` changes nothing here. Attention and FFN
scores are in one unit, the loss in nats.
"""

from __future__ import annotations

from typing import Literal

from bipline.compression.criteria.interface import Block, BlockScores, Options, Sums
from bipline.compression.criteria.needs import GRADIENTS
from bipline.compression.gradient_sums import by_kind, names_of

NEEDS = GRADIENTS
TERMS = {
    "element-first": "element_first",
    "element-second": "element_second",
    "element-mixed": "element_mixed",
    "vector": "coupled_vectors",
}


class LlmPrunerOptions(Options):
    """``importance``: which of the four forms."""

    importance: Literal["element-first", "element-second", "element-mixed", "vector"] = (
        "element-first"
    )


OPTIONS = LlmPrunerOptions


def reads(options: LlmPrunerOptions) -> frozenset[str]:
    """What ``score`` reads."""
    return names_of(TERMS[options.importance])


def score(sums: Sums, block: Block, options: LlmPrunerOptions) -> BlockScores:
    """The sums of the chosen form, as they are."""
    return by_kind(lambda kind: sums[f"{kind}_{TERMS[options.importance]}"])
