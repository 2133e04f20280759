"""The loop is held to transformers' own model before a number counts: one small model a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.model import agreement
from bipline.model.agreement import check_agreement, narrowed
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.config_keys import allowed_keys, checked_config
from bipline.model.opening import open_checkpoint
from bipline.model.per_layer.config import per_layer_config
from bipline.model.shapes import BlockWidths
from tests.tiny import FAMILY_CASES, config_of

WHERE = "model/config.json"
SIZES_OF_BLOCKS = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "pad_token_id", "bos_token_id", "eos_token_id",
    "sliding_window",
}  # fmt: skip


def loop_logits(checkpoint: Checkpoint, token_ids: Tensor) -> Tensor:
    return BlockLoop(checkpoint).logits(token_ids)


@pytest.fixture(autouse=True)
def nothing_agreed_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(agreement, "_AGREED", set())
    yield


def checked(case: str = "llama-gqa", **changes: Any) -> dict[str, Any]:
    return checked_config(config_of(case, **changes), WHERE)


ACTIVATIONS = allowed_keys("llama")["hidden_act"].choices
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    **{case: (case, {}) for case in FAMILY_CASES},
    **{act: ("llama-gqa", {"hidden_act": act}) for act in ACTIVATIONS},
    "linear": ("llama-gqa", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "dynamic": ("qwen3-gqa", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "dynamic past its positions": (
        "llama-gqa",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 12},
    ),
    "yarn": ("qwen2-gqa", {"rope_parameters": YARN}),
    "longrope": (
        "mistral-gqa",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3, 4.0]}},
    ),
    "theta beside": ("llama-mha", {"rope_theta": 500000.0}),
    "eps": ("llama-mha", {"rms_norm_eps": 0.1}),
    "short window": ("mistral-mqa", {"sliding_window": 5}),
    "windows from block 1 on": (
        "qwen2-mha",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "layer types": (
        "qwen3-mqa",
        {
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "odd groups": ("qwen2-mha", {"num_attention_heads": 9, "num_key_value_heads": 3}),
    "many queries": ("llama-mqa", {"hidden_size": 64, "num_attention_heads": 32}),
}  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_agrees_and_is_kept(switch: str) -> None:
    case, changes = SWITCHES[switch]
    config = checked(case, **changes)
    check_agreement(config, loop_logits, WHERE)
    small = narrowed(config)
    kept = config.keys() - SIZES_OF_BLOCKS - {"layer_types", "max_window_layers"}
    assert {key: small[key] for key in kept} == {key: config[key] for key in kept}
    assert narrowed(small) == small
    assert small["hidden_size"] < 48 or switch == "many queries"


def test_blocks_of_every_kind_are_in_the_small_model() -> None:
    types = ["full_attention"] * 5 + ["sliding_attention"] * 3
    changes = {"use_sliding_window": True, "num_hidden_layers": 8}
    config = checked("qwen3-gqa", **changes, layer_types=types)
    assert narrowed(config)["layer_types"] == ["full_attention", "sliding_attention"]
    assert narrowed(checked(num_hidden_layers=1000))["num_hidden_layers"] == 1


def wrong_loops() -> dict[str, Callable[[Checkpoint, Tensor], Tensor]]:
    """Loops that do something around the blocks as transformers does not, for these families."""

    def scaled_embedding(checkpoint: Checkpoint, token_ids: Tensor) -> Tensor:
        loop = BlockLoop(checkpoint)
        hidden = loop.embed(token_ids) * 12
        for block in loop.blocks():
            hidden = block.run(hidden)
        return loop.token_logits(hidden, loop.output_weight())

    def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def logits(checkpoint: Checkpoint, token_ids: Tensor) -> Tensor:
            return change(BlockLoop(checkpoint).logits(token_ids))

        return logits

    return {
        "embedding multiplier": scaled_embedding,
        "logits scaled": changed("scaled", lambda logits: logits / 1.01),
        "logits capped": changed("capped", lambda logits: 30 * (logits / 30).tanh()),
        "not a number": changed("nan", lambda logits: logits * float("nan")),
        "shifted": changed("shifted", lambda logits: logits.roll(1, dims=1)),
    }


@pytest.mark.parametrize("fault", wrong_loops())
def test_a_loop_that_computes_otherwise_is_refused_every_time(fault: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"^model/config.json: .*other logits") as caught:
            check_agreement(checked(), wrong_loops()[fault], WHERE)
        assert "\n" not in str(caught.value)


def test_what_transformers_cannot_run_is_refused_in_one_line() -> None:
    """Full attention alone has no window, and sliding attention without one is no attention."""
    config = checked("qwen2-mha", layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(InvalidInput) as caught:
        check_agreement(config, loop_logits, WHERE)
    assert "\n" not in str(caught.value)


def test_a_config_is_compared_once_and_draws_from_no_shared_generator(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    really = agreement._difference
    monkeypatch.setattr(
        agreement, "_difference", lambda *given: asked.append(given) or really(*given)
    )
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    for _ in range(3):
        BlockLoop(open_checkpoint(llama))
    assert len(asked) == 1
    assert torch.randn(4).equal(expected)


@pytest.mark.parametrize(
    "case", ["llama-gqa", "mistral-mha", "qwen2-gqa", "qwen3-gqa", "seed-oss-gqa"]
)
def test_per_layer_models_are_held_to_their_own_class(case: str) -> None:
    """A block without attention, one without an FFN, and whole ones: three kinds."""
    config = checked(case, num_hidden_layers=5)
    widths = [
        BlockWidths(num_key_value_heads=groups, intermediate_size=channels)
        for groups, channels in ((0, 7), (4, 40), (1, 0), (3, 13), (2, 0))
    ]
    config = per_layer_config(config, range(5), widths)
    small = narrowed(config)
    assert small["num_key_value_heads_per_layer"] == [0, 2, 2]
    assert small["intermediate_size_per_layer"] == [24, 24, 0]
    check_agreement(config, loop_logits, WHERE)
