"""What transformers' decoder hands to its blocks, beyond what fits a window of any family's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.surroundings import Handed, Surroundings
from tests.looped import check_parts
from tests.tiny import tiny_model, token_windows

WINDOWS = token_windows(windows=3, seqlen=20)
MIXED = {
    "use_sliding_window": True, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
SLIDING: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("mistral-gqa", {"sliding_window": 5}),
    "some": ("qwen3-mqa", MIXED),
}


@pytest.fixture(scope="module", params=SLIDING)
def sliding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    case, changes = SLIDING[request.param]
    return tiny_model(tmp_path_factory.mktemp("sliding") / request.param, case, **changes)


def test_windows_longer_than_attention_reaches(sliding: Path) -> None:
    """Whole, in halves, and token by token with a cache: always what transformers computes."""
    loop = BlockLoop(open_checkpoint(sliding), torch.float64)
    with torch.no_grad():
        expected = load_model(sliding, torch.float64)(WINDOWS).logits
    torch.testing.assert_close(loop.logits(WINDOWS), expected, rtol=0, atol=1e-10)
    check_parts(loop, WINDOWS, expected)


def test_soft_caps_of_attention_are_those_of_transformers_eager_attention(tmp_path: Path) -> None:
    """transformers' fast attention has none, and is not what the loop runs."""
    capped = tiny_model(tmp_path / "capped", "gemma2")
    config = AutoConfig.from_pretrained(capped)
    eager = AutoModelForCausalLM.from_pretrained(
        capped, dtype=torch.float64, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = eager(WINDOWS).logits
    loop = BlockLoop(open_checkpoint(capped), torch.float64)
    torch.testing.assert_close(loop.logits(WINDOWS), expected, rtol=0, atol=1e-10)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert getattr(config, cap)
        uncapped = tiny_model(tmp_path / cap, "gemma2", **{cap: None})
        without = BlockLoop(open_checkpoint(uncapped), torch.float64).logits(WINDOWS)
        assert (without - expected).abs().max() > 0.01
    with pytest.raises(ValueError, match="scaled_dot_product"):
        AutoModelForCausalLM.from_pretrained(capped, attn_implementation="sdpa")


def test_a_shape_is_asked_for_once_and_few_are_kept(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Size] = []
    really = Surroundings._record

    def record(self: Surroundings, hidden: Tensor, past: Any) -> list[Handed]:
        asked.append(hidden.shape)
        return really(self, hidden, past)

    monkeypatch.setattr(Surroundings, "_record", record)
    loop = BlockLoop(open_checkpoint(llama), torch.float64)
    asked.clear()
    for _ in range(2):
        loop.logits(WINDOWS)
    assert len(asked) == 1
    for seqlen in range(2, 9):
        loop.logits(WINDOWS[:, :seqlen])
    assert len(asked) == 8
    assert len(loop.around._handed) == 4


def test_nothing_of_a_pass_stays(llama: Path) -> None:
    """Neither hidden states nor the output matrix nor rows of the embedding."""
    loop = BlockLoop(open_checkpoint(llama), torch.float64)
    loop.logits(WINDOWS)
    held = {name for name, p in loop.around._model.named_parameters() if not p.is_meta}
    assert held == {"model.norm.weight"}
    assert all(each.gives is None for each in loop.around._stand_ins)
    assert loop.around._stand_ins[0].entered is None
