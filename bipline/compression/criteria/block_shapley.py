"""``block-shapley``: what the whole model loses without a block, or a sublayer.

s = mean of the metric over single deletions in which the unit stays
    - mean of the metric over those in which it goes,     the sign turned so that more is important
``metric: loss``    the language model's loss in nats per token              (default)
``metric: logits``  the L2 distance of the logits from the dense model's
``of: blocks``      whole blocks (default); ``of: sublayers``: attention and FFN apart

The score is for depth, as ``block-influence`` is, but of the whole model: for n units it costs n
forward passes from the unit on. ``samples`` windows are used (default 32).

Source: "Shapley" as coded in "A deeper look at depth pruning" (arXiv 2407.16286), which looks at
single deletions only and so is no Shapley value in the strict sense. Established, from that code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bipline.compression.criteria.interface import BlockScores, DepthOptions
from bipline.compression.criteria.needs import SEARCH
from bipline.compression.criteria.search import Search
from bipline.compression.deletions import deletion_changes, shapley_values
from bipline.model.floor import Counted, forward_operations, head_operations
from bipline.model.shapes import ModelShape

NEEDS = SEARCH


class ShapleyOptions(DepthOptions):
    """What is measured, and on how many calibration windows."""

    metric: Literal["loss", "logits"] = "loss"
    samples: Annotated[int, Field(ge=1)] = 32


OPTIONS = ShapleyOptions
EXPERTS = True


def search(searching: Search, options: ShapleyOptions) -> list[BlockScores]:
    """Every unit's value, borne by each of its groups and channels."""
    token_ids, loop = searching.token_ids[: options.samples], searching.loop
    values = shapley_values(deletion_changes(loop, token_ids, options.of, options.metric))
    # Columns: attention and FFN, or one for the whole block.
    return [BlockScores.of_units(row[0], row[-1], loop.checkpoint.shape) for row in values]


def operations(shape: ModelShape, options: ShapleyOptions, windows: int, seqlen: int) -> Counted:
    """Floating-point operations: every model that lacks a unit runs the blocks behind it.

    One that lacks a sublayer runs the rest of its block too; all of them have logits.
    """
    layers, parts = shape.num_hidden_layers, 1 if options.of == "blocks" else 2
    passes = 1 + parts * (layers - 1) / 2 + (parts if parts > 1 else 0)
    drawn = min(windows, options.samples), seqlen
    forward, heads = forward_operations(shape, *drawn), 1 + layers * parts
    return Counted(passes * forward + heads * head_operations(shape, *drawn))
