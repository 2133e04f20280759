"""Allocate: scores and a budget become a :class:`PruningPlan`."""

from __future__ import annotations

import math
from typing import Literal

import torch

from bipline.artifacts.errors import InvalidInput
from bipline.artifacts.plan import BlockPlan, Budget, PruningPlan
from bipline.artifacts.progress import note
from bipline.compression.allocation.uniform import (
    Widths,
    default_ffn_multiple,
    largest_ratio,
    uniform_widths,
)
from bipline.compression.statistics import Scores
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import ModelShape, exported_config

RatioOf = Literal["blocks", "total"]


def check_ratio(ratio: float) -> None:
    """Raise InvalidInput unless the ratio lies strictly between 0 and 1."""
    if not (math.isfinite(ratio) and 0 < ratio < 1):
        raise InvalidInput(f"ratio {ratio}: must lie between 0 and 1, both excluded")


def allocate(
    checkpoint: Checkpoint,
    scores: Scores,
    ratio: float,
    ratio_of: RatioOf = "blocks",
    ffn_multiple: int | None = None,
) -> PruningPlan:
    """Choose what every block keeps, with uniform widths.

    The plan is for the model of the scores; pruning compares its tensors while it reads them.
    Raises InvalidInput when the scores do not fit the model's shape, and as
    :func:`planned_widths` does.
    """
    _check_fit(checkpoint, scores)
    widths, multiple = planned_widths(checkpoint, ratio, ratio_of, ffn_multiple)
    return PruningPlan(
        tensor_digest=scores.tensor_digest,
        criterion=scores.criterion,
        allocation="uniform",
        budget=_budget(checkpoint, ratio, ratio_of, widths),
        ffn_multiple=multiple,
        notes=_notes(checkpoint.shape),
        blocks=tuple(
            BlockPlan(
                attention_groups=highest(block.attention_groups, widths.attention_groups),
                ffn_channels=highest(block.ffn_channels, widths.ffn_channels),
            )
            for block in scores.blocks
        ),
    )


def _check_fit(checkpoint: Checkpoint, scores: Scores) -> None:
    shape = checkpoint.shape
    widths = {(len(block.attention_groups), len(block.ffn_channels)) for block in scores.blocks}
    fits = widths == {(shape.num_key_value_heads, shape.intermediate_size)}
    if not fits or len(scores.blocks) != shape.num_hidden_layers:
        raise InvalidInput(f"the scores are of another model than {checkpoint.location}")


def planned_widths(
    checkpoint: Checkpoint, ratio: float, ratio_of: RatioOf, ffn_multiple: int | None
) -> tuple[Widths, int]:
    """What every block will keep, and the FFN multiple used: known before anything is scored.

    ``ratio`` is a share of the blocks' linear weights, or of all parameters (``ratio_of`` total).
    Raises InvalidInput for a ratio that makes no sense or cannot be reached, and where no
    transformers class holds the result.
    """
    check_ratio(ratio)
    multiple = _checked_multiple(checkpoint.shape, ffn_multiple)
    of_blocks = _ratio_of_blocks(checkpoint, ratio, ratio_of, multiple)
    widths = uniform_widths(checkpoint.shape, of_blocks, multiple)
    exported_config(checkpoint.config, widths.ffn_channels, widths.attention_groups)
    return widths, multiple


def highest(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` highest scores, ascending; of equal scores the first stay."""
    order = torch.sort(scores.double(), descending=True, stable=True).indices[:count]
    return tuple(int(index) for index in order.sort().values)


def _checked_multiple(shape: ModelShape, ffn_multiple: int | None) -> int:
    multiple = default_ffn_multiple(shape) if ffn_multiple is None else ffn_multiple
    if not 1 <= multiple <= shape.intermediate_size:
        raise InvalidInput(
            f"ffn_multiple {ffn_multiple}: must lie between 1 and {shape.intermediate_size}"
        )
    return multiple


def _ratio_of_blocks(
    checkpoint: Checkpoint, ratio: float, ratio_of: RatioOf, ffn_multiple: int
) -> float:
    if ratio_of == "blocks":
        return ratio
    shape = checkpoint.shape
    in_blocks = shape.block_weights * shape.num_hidden_layers / checkpoint.parameters
    largest = largest_ratio(shape, ffn_multiple) * in_blocks
    if ratio > largest:
        raise InvalidInput(
            f"ratio {ratio:g} of all parameters cannot be reached with uniform widths; the "
            f"largest that can is {math.floor(largest * 1e4) / 1e4:g}"
        )
    return ratio / in_blocks


def _budget(checkpoint: Checkpoint, ratio: float, ratio_of: RatioOf, widths: Widths) -> Budget:
    shape = checkpoint.shape
    removed = widths.removed_weights(shape)
    return Budget(
        asked=ratio,
        of=ratio_of,
        reached_blocks=removed / shape.block_weights,
        reached_total=removed * shape.num_hidden_layers / checkpoint.parameters,
    )


def _notes(shape: ModelShape) -> tuple[str, ...]:
    if shape.num_key_value_heads > 1:
        return ()
    text = "one KV head (MQA): attention stays whole and the FFN takes the whole ratio"
    note(text)
    return (text,)
