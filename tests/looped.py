"""What holds of a block loop: halves make the block, and tokens one by one make the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from bipline.model.block_loop import BlockLoop
from bipline.model.halves import Halves


def by_the_stock_class(directory: Path) -> Any:
    """What was written, loaded by transformers and nothing of ours."""
    # In float64 transformers runs experts by their class's own code alone.
    plain = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, experts_implementation="eager"
    ).eval()
    assert type(plain).__module__.startswith("transformers.models.")
    return plain


def cached_tolerance(config: Any) -> float:
    """How far logits with a cache may lie from those without, by transformers itself.

    Its eager softmax is in float32 whatever the dtype, and adds up as many terms as there are keys.
    """
    return 1e-5 if config._attn_implementation == "eager" else sliced_tolerance(config)


def sliced_tolerance(config: Any) -> float:
    """How far logits of a sliced model may lie from those of the masked one, or of single tokens.

    GLM-4.5's router computes in float32 whatever the dtype, where products of fewer rows, or of
    fewer tokens, are rounded otherwise.
    """
    return 1e-5 if config.model_type == "glm4_moe" else 1e-10


def check_parts(loop: BlockLoop, windows: Tensor, expected: Tensor) -> None:
    """Halves and blocks alike, and logits token by token with a cache as ``expected``."""
    hidden, cache, output = loop.embed(windows), DynamicCache(), loop.output_weight()
    # Experts have no halves: nothing of theirs is compensated.
    for block in () if loop.checkpoint.shape.num_experts else loop.blocks():
        halved, hidden = Halves.of(block).run(hidden), block.run(hidden)
        torch.testing.assert_close(halved, hidden, rtol=0, atol=1e-10)
    for place in range(windows.shape[1]):
        token = loop.embed(windows[:, place : place + 1], place)
        with torch.no_grad():
            for block in loop.blocks():
                token = loop.forward(block.index, block.weights, token, cache, place)
            found = loop.token_logits(token, output)[:, 0]
        tolerance = cached_tolerance(loop.around.config)
        torch.testing.assert_close(found, expected[:, place], rtol=0, atol=tolerance)
