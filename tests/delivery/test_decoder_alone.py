"""GGUF and ONNX of a decoder inside another model: the decoder alone, and it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import bipline
from bipline.compression.prune import prune
from bipline.delivery.card import escaped
from bipline.delivery.formats.engines import ask
from bipline.delivery.formats.gguf import engine
from bipline.model.nested import load_whole
from bipline.model.opening import open_checkpoint
from bipline.settings.gguf import GgufSettings
from bipline.values.export import ExportRecord
from tests.gguf_tokenizers import KINDS, VOCAB_SIZE, save
from tests.per_layer import kept, plan_of
from tests.wrapped import tiny_wrapped

pytestmark = pytest.mark.slow
# What llama.cpp takes for given of Gemma 3.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma3": {"query_pre_attn_scalar": 4, "attn_logit_softcapping": None}, "mistral3": {},
}  # fmt: skip
ARCHITECTURES = {"gemma3": "gemma3", "mistral3": "llama"}


@pytest.fixture(scope="module", params=PUBLISHED)
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wrapper of which some groups and channels went."""
    place, name = tmp_path_factory.mktemp("wrapped"), request.param
    changes = {"vocab_size": VOCAB_SIZE, **PUBLISHED[name]}
    checkpoint = open_checkpoint(
        save(KINDS["gpt-2"](), tiny_wrapped(place / "model", name, torch.float32, **changes))
    )
    some = [kept([0, 1], list(range(3, 27)))] * checkpoint.shape.num_hidden_layers
    prune(checkpoint, plan_of(checkpoint, some, "uniform"), place / "pruned")
    return place / "pruned"


def whole_logits(model: Path, ids: torch.Tensor) -> torch.Tensor:
    """What the whole model says of a text, in log-probabilities ``[tokens, vocab_size]``."""
    with torch.no_grad():
        return load_whole(open_checkpoint(model), torch.float32)(ids).logits[0].log_softmax(-1)


def held_to_the_decoder(record: ExportRecord, model: Path) -> None:
    """What is told: how many tensors are not there, and how many parameters are."""
    checkpoint = open_checkpoint(model)
    model_type = json.loads((model / "config.json").read_text())["model_type"]
    told = f"the decoder of a {model_type} alone: the {len(checkpoint.beside)} other tensors"
    assert record.notes[0].startswith(told)
    assert "multi_modal_projector, vision_tower" in record.notes[0]
    around = sum(checkpoint.tensors[name].elements for name in checkpoint.beside)
    assert around and record.parameters == checkpoint.parameters - around
    assert record.origin.tensor_digest == checkpoint.tensor_digest


@pytest.mark.parametrize("type_", ["f32", "f16"])
def test_llama_cpp_runs_the_decoder(pruned: Path, type_: str, tmp_path: Path) -> None:
    record = bipline.export(pruned, tmp_path / "out", type=type_, state=tmp_path / "state")
    held_to_the_decoder(record, pruned)
    model_type = open_checkpoint(pruned).nesting.config["model_type"]
    assert record.architecture == ARCHITECTURES[model_type]
    assert record.check.compared > 500
    assert escaped(record.notes[0]) in (tmp_path / "out" / "README.md").read_text()
    if type_ != "f32":
        return
    ids = torch.arange(3, 43)[None]
    expected = whole_logits(pruned, ids)[-1].double()
    asked = {
        "threads": 1, "context": 64, "size": VOCAB_SIZE, "texts": [], "contexts": ids.tolist(),
        "windows": [], "continue": [[3], 1],
    }  # fmt: skip
    file = tmp_path / "out" / "model.gguf"
    said = ask(Path(engine.__file__), file, asked, GgufSettings(), "llama.cpp")
    [told] = said["distributions"]
    found = torch.tensor([told[str(token)] for token in range(VOCAB_SIZE)]).double()
    found -= found.logsumexp(0)
    # GELU comes off a table in f16.
    rounded = 1e-2 if model_type == "gemma3" else 1e-4
    assert float((found - expected).abs().max()) <= rounded < float(expected.std())


def test_onnx_runtime_runs_the_decoder(pruned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = bipline.export(pruned, out, format="onnx", state=tmp_path / "state")
    held_to_the_decoder(record, pruned)
    assert not (out / "preprocessor_config.json").exists()
    config = json.loads((out / "config.json").read_text())
    assert [config["architectures"][0]] == [record.architecture] and "text_config" not in config
    assert config["intermediate_size"] == 24
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    ids = torch.arange(3, 43)[None]
    feed = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 40), np.int64)}
    feed["position_ids"] = np.arange(40)[None]
    feed |= {
        each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
        for each in session.get_inputs() if each.name.startswith("past_key_values.")
    }  # fmt: skip
    found = torch.from_numpy(session.run(["logits"], feed)[0])[0].log_softmax(-1)
    assert float((found - whole_logits(pruned, ids)).abs().max()) < 1e-4
