"""Baichuan-7B: read as the LLaMA that it is, q, k and v in one matrix; others are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput
from bipline.compression.prune import prune
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.shard_digests import digest_shards
from bipline.model.tokenizer import load_tokenizer
from bipline.recovery.written import write_merged
from bipline.storage.directory import atomic_directory
from tests.model.refusals import refusal
from tests.oracles.test_slicing import random_plan
from tests.tiny import tiny_model, token_windows

WINDOWS = token_windows(windows=2, seqlen=16)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LLaMA, and the same as a Baichuan-7B."""
    folder = tmp_path_factory.mktemp("both")
    return tiny_model(folder / "llama", "llama-mha"), tiny_model(folder / "baichuan", "baichuan")


def pruned(checkpoint: Checkpoint, out: Path) -> dict[str, torch.Tensor]:
    prune(checkpoint, random_plan(checkpoint, 0.4), out)
    return load_file(out / "model.safetensors")


def test_it_is_the_llama_that_it_was_made_of(both: tuple[Path, Path]) -> None:
    llama, baichuan = both
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(llama)(WINDOWS).logits
        found = load_model(baichuan, torch.float64)(WINDOWS).logits
    assert torch.equal(found, expected)
    looped = BlockLoop(open_checkpoint(baichuan), torch.float64).logits(WINDOWS)
    torch.testing.assert_close(looped, expected, rtol=0, atol=1e-10)


def test_its_smaller_models_are_those_of_the_llama(both: tuple[Path, Path], tmp_path: Path) -> None:
    """Tensor by tensor, under a class of transformers, and no code is named any more."""
    expected, found = (pruned(open_checkpoint(each), tmp_path / each.name) for each in both)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    configs = [json.loads((tmp_path / each.name / "config.json").read_text()) for each in both]
    sizes = [{k: v for k, v in config.items() if k != "bipline"} for config in configs]
    said = {"dtype": "float64", "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    assert sizes[0] == {**sizes[1], **said}
    assert "auto_map" not in sizes[1]


def test_trained_weights_are_written_as_its_class_has_them(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(both[1])
    trained = load_model(checkpoint, torch.float64).state_dict()
    with atomic_directory(tmp_path / "out", "model") as writer:
        write_merged(checkpoint, trained, writer)
    written, expected = open_checkpoint(tmp_path / "out"), open_checkpoint(both[0])
    assert written.tensor_digest == expected.tensor_digest
    assert written.config["model_type"] == "llama"


def test_a_tokenizer_with_code_of_its_own_is_refused(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(both[1], tmp_path / "model"))
    file = model / "tokenizer_config.json"
    named = {
        "tokenizer_class": "BaiChuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaiChuanTokenizer", None]},
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    assert "code of its own, which is never run" in refusal(InvalidInput, load_tokenizer, model)


def test_digests_are_of_what_is_stored(both: tuple[Path, Path], tmp_path: Path) -> None:
    """However it was read: by ranges for each part, whole, or as the bytes of a file."""
    sliced, whole, hashed = (open_checkpoint(both[1]) for _ in range(3))
    pruned(sliced, tmp_path / "out")
    for index in range(whole.shape.num_hidden_layers):
        whole.block_weights(index)
    digest_shards(hashed)
    name = "model.layers.1.self_attn.W_pack.weight"
    digests = {each.digests.known[name] for each in (sliced, whole, hashed)}
    assert len(digests) == 1
    assert sliced.tensor_digest == whole.tensor_digest == hashed.tensor_digest
    assert whole.tensor_digest != open_checkpoint(both[0]).tensor_digest


def changed(model: Path, folder: Path, **changes: Any) -> Path:
    config = json.loads((model / "config.json").read_text())
    kept = {key: v for key, v in {**config, **changes}.items() if v is not None}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BaichuanForCausalLM"], "hidden_size": 5120}, ("13B", "ALiBi")),
        ({"architectures": ["BaichuanForCausalLM"]}, ("Baichuan 2", "output matrix")),
        ({"architectures": ["Other"]}, ("'Other'", "not BaiChuanForCausalLM")),
        ({"architectures": None}, ("nothing", "not BaiChuanForCausalLM")),
        ({}, ("no model.safetensors",)),
    ],
)
def test_others_of_its_model_type_are_refused(
    changes: dict[str, Any], words: tuple[str, ...], both: tuple[Path, Path], tmp_path: Path
) -> None:
    model = changed(both[1], tmp_path / "model", **changes)
    told = refusal(InvalidInput, open_checkpoint, model)
    assert all(word in told for word in words)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    model = changed(both[1], tmp_path / "model")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    told = refusal(InvalidInput, open_checkpoint, model)
    assert "pytorch_model.bin" in told and "Pickled weights" in told
    page = Path(__file__).parents[2] / "docs" / "failures.md"
    assert "### Pickled weights" in page.read_text()
