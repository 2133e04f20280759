"""Why a pruned model is not faster: what of its work went, and what its widths are to a kernel."""

from __future__ import annotations

from bipline.model.shapes import ModelShape
from bipline.values.speed import Speed

# Matrix kernels work on tiles of these widths; what is left over costs a whole tile.
TILES = (64, 32, 16)
# From this share on, what pruning leaves alone decides.
LARGE_SHARE = 0.3
# Below this width starting an operation takes as long as its arithmetic.
NARROW = 256


def remarks(dense: ModelShape, pruned: ModelShape, before: Speed, after: Speed) -> tuple[str, ...]:
    """Lines for prefill and decode that are not told to be faster; none where both are."""
    slow = [
        name
        for name in ("prefill", "decode")
        if getattr(after, name).lower <= getattr(before, name).upper
    ]
    if not slow:
        return ()
    said = [_work(name, dense, pruned, before.prompt_tokens) for name in slow]
    return (*said, *_widths(dense, pruned), *_narrow(pruned))


def work(shape: ModelShape, tokens: int, name: str) -> tuple[float, float]:
    """Multiplications a token in blocks and in the vocabulary head.

    In prefill attention sees half of ``tokens`` on average and the head only the last of them.
    """
    widths = sum(
        2 * shape.block(index).num_attention_heads * shape.head_dim
        for index in range(shape.num_hidden_layers)
    )
    head = shape.vocab_size * shape.hidden_size
    if name == "prefill":
        return shape.token_weights + widths * tokens / 2, head / tokens
    return shape.token_weights + widths * tokens, head


def _work(name: str, dense: ModelShape, pruned: ModelShape, tokens: int) -> str:
    (blocks, head), (left, _) = work(dense, tokens, name), work(pruned, tokens, name)
    most = (blocks + head) / (left + head)
    said = f"{name} is not told to be faster: {1 - 1 / most:.0%} of its work went, so at most "
    said += f"{most:.2f} times the speed is to be had"
    if (share := head / (left + head)) > LARGE_SHARE:
        said += f"; the vocabulary head is {share:.0%} of what is left"
    return said


def _widths(dense: ModelShape, pruned: ModelShape) -> list[str]:
    """Widths that fit a kernel's tiles less well than the dense model's did."""
    found: dict[str, None] = {}
    for index in range(pruned.num_hidden_layers):
        before = dense.block(min(index, dense.num_hidden_layers - 1))
        after = pruned.block(index)
        for axis in ("ffn_channels", "query_heads", "kv_heads"):
            had, has = tile(before.axis_size(axis)), tile(after.axis_size(axis))
            if has < had:
                title = axis.replace("_", " ").replace("ffn", "FFN")
                width = after.axis_size(axis)
                fits = f"a multiple of {has} only" if has > 1 else f"no multiple of {TILES[-1]}"
                line = f"width {width} ({title}) is {fits}, the dense one of {had}"
                found[f"{line}; prune with --ffn-multiple or --divisible-by"] = None
    return list(found)


def tile(width: int) -> int:
    """The widest tile that a width is made of; 1 for none."""
    return next((each for each in TILES if width % each == 0), 1)


def _narrow(shape: ModelShape) -> list[str]:
    if shape.hidden_size >= NARROW:
        return []
    return [
        f"at hidden size {shape.hidden_size} starting the operations takes more time than their "
        "arithmetic, which is all that pruning makes less"
    ]
