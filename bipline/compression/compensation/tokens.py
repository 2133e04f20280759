"""How many tokens compensation asks for: a fit needs more of them than it has columns."""

from __future__ import annotations

from bipline.base.errors import InvalidInput
from bipline.compression.compensation.streams import held_out_windows
from bipline.model.shapes import ModelShape

# Tokens for each column below which H is too near to singular to be trusted.
TOKENS_PER_COLUMN = 2


def check_tokens(shape: ModelShape, samples: int, seqlen: int, held_out: float) -> None:
    """Raise InvalidInput for fewer fitted tokens than twice the columns of the widest matrix.

    An expert counts as many times over as it sees fewer tokens, on average.
    ``held_out`` is the share of the samples that is not fitted on, 0 for none; the message names
    the samples needed.
    """
    columns, tokens = _columns(shape), _fitted(samples, held_out) * seqlen
    if tokens >= TOKENS_PER_COLUMN * columns:
        return
    told = f"{columns} columns"
    if columns == _of_experts(shape):
        told = (
            f"{shape.intermediate_size} columns of experts that see {shape.num_experts_per_tok} of "
            f"{shape.num_experts} tokens"
        )
    raise InvalidInput(
        f"compensation fits {told} on {tokens} tokens; it needs "
        f"{TOKENS_PER_COLUMN * columns}, so at least {least_samples(shape, seqlen, held_out)} "
        f"samples of seqlen {seqlen}"
    )


def least_samples(shape: ModelShape, seqlen: int, held_out: float) -> int:
    """The fewest samples of ``seqlen`` tokens whose fitted part is enough."""
    least = TOKENS_PER_COLUMN * _columns(shape)
    samples = -(-least // seqlen)
    while _fitted(samples, held_out) * seqlen < least:
        samples += 1
    return samples


def _fitted(samples: int, held_out: float) -> int:
    return samples - len(held_out_windows(samples, held_out)) if held_out else samples


def _columns(shape: ModelShape) -> int:
    beside = max(shape.intermediate_size, shape.shared_channels, shape.dense_channels)
    return max(shape.num_attention_heads * shape.head_dim, beside, _of_experts(shape))


def _of_experts(shape: ModelShape) -> int:
    """The columns of an expert, times the tokens of which it sees one; 0 without experts."""
    return -(-shape.intermediate_size * shape.num_experts // max(1, shape.num_experts_per_tok))
