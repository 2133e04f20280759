"""Operations of the allocations that run windows: counted from sizes, before anything runs."""

from __future__ import annotations

from typing import Any

from bipline.compression.allocation import allocation_options, compensated, load_allocation
from bipline.compression.allocation.compensated_errors import every_so_many
from bipline.compression.allocation.trial import COMPARED, RESTORED, fewer, trial_options
from bipline.compression.compensation.memory import moments_operations
from bipline.compression.compensation.operations import attention_stays, sequential_operations
from bipline.model.floor import Counted, forward_operations, head_operations
from bipline.model.shapes import ModelShape
from bipline.settings.line import AllocateSettings


def allocation_operations(
    shape: ModelShape, settings: AllocateSettings, ratio: float, samples: int, seqlen: int
) -> Counted:
    """Operations of an allocation; ``ratio`` is a share of the blocks' linear weights.

    Of ``compensated`` they are counted part by part; of another one its file counts them, where it
    is no single pass over the windows.
    """
    name = str(settings.allocation)
    options: Any = allocation_options(name, 0, settings.allocation_option)
    if not isinstance(options, compensated.OPTIONS):
        module: Any = load_allocation(name)
        if not hasattr(module, "operations"):
            return Counted(forward_operations(shape, samples, seqlen))
        counted: Counted = module.operations(shape, options, samples, seqlen)
        return counted
    few = min(samples, fewer(shape, seqlen, options.windows))
    per_layer = settings.layout == "per-layer"
    blocks = [shape.block(index) for index in range(shape.num_hidden_layers)]
    # In the uniform layout no width is measured that no split has.
    gone = 1.0 if per_layer else min(1.0, 1.5 * ratio)
    total = Counted(forward_operations(shape, few, seqlen))
    every = 1 if per_layer else every_so_many(len(blocks), options.blocks)
    errors = sum(_errors(block, few * seqlen, gone) for block in blocks[::every])
    total += Counted(errors, errors)
    # Where attention stays, no other split has come near.
    whole = attention_stays(shape, ratio, settings.layout)
    tried = 1 if whole and options.margin < 2 else min(options.tried, shape.num_key_value_heads)
    if per_layer:
        # Streams that were disturbed before run through every block that follows.
        probes = min(options.probes, few) if options.weighed else 0
        total += Counted(len(blocks) * forward_operations(shape, probes, seqlen))
        if options.tried > 1:  # by restored blocks, errors alone, and the best uniform ones too
            total += _restored(shape, samples, few, seqlen).times((1 - ratio) * options.weighed)
            weights = min(options.tried, len(options.attention_weights))
            tried = (weights + 1) * options.weighed + 2
    if tried > 1:
        each = trial_options(options.ridge, options.row_steps if per_layer else 0)
        trial = sequential_operations(shape, "obs", each, few, seqlen, ratio, whole)
        compared = min(samples - few, COMPARED * few) + each.held_out * few
        trial += Counted(forward_operations(shape, 1, seqlen) * compared * (1 - ratio))
        total += trial.times(tried)
    return total


def windows_back(settings: AllocateSettings) -> int:
    """Windows that an allocation runs backward together; 0 where it runs none."""
    module: Any = load_allocation(str(settings.allocation))
    return int(getattr(module, "BACKWARD_WINDOWS", 0))


def _restored(shape: ModelShape, samples: int, few: int, seqlen: int) -> Counted:
    """Streams in which one block was restored, each through all that follow."""
    compared = min(samples - few, COMPARED * few)
    restored = min(samples - few - compared or compared, RESTORED)
    blocks = forward_operations(shape, 1, seqlen) / 2
    logits = head_operations(shape, 1, seqlen)
    return Counted(shape.num_hidden_layers * restored * (blocks + logits))


def _errors(block: ModelShape, tokens: int, gone: float) -> float:
    """Moments and eliminations of one block's two matrices."""
    total = float(moments_operations(block, tokens, False, False))
    for columns in (block.num_attention_heads * block.head_dim, block.intermediate_size):
        total += columns**3 + block.hidden_size * columns**2 + 3.0 * gone * columns**3
    return total
