"""What config.json says of blocks of different widths, and the classes that a model carries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bipline.compression.prune import prune
from bipline.model.block_loop import BlockLoop
from bipline.model.family import family_names
from bipline.model.opening import open_checkpoint
from bipline.model.per_layer import modeling_per_layer
from bipline.model.per_layer.classes import PER_LAYER_CLASSES
from bipline.model.per_layer.shipping import auto_map, code_files, own_class
from bipline.model.shapes import PER_LAYER_PREFIX
from bipline.storage.stage_key import import_closure, imported_modules
from tests.per_layer import EARLIER_CODE, kept, listed, plan_of
from tests.tiny import token_windows

# Those whose blocks can have widths of their own; mixtures of experts cannot yet.
WITH_CLASS = [name for name in family_names() if PER_LAYER_PREFIX + name in PER_LAYER_CLASSES]


def test_config_says_the_widths_as_transformers_does(pruned: Path, tmp_path: Path) -> None:
    written = json.loads((pruned / "config.json").read_text())
    assert written["per_layer_config"]["3"] == {
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 13,
    }  # fmt: skip
    assert not any(key.endswith("_per_layer") for key in written)
    config = own_class("per_layer_llama").config_class.from_pretrained(pruned)
    assert config.is_heterogeneous
    told = [
        (each.num_attention_heads, each.num_key_value_heads, each.intermediate_size)
        for each in config.per_layer_config
    ]
    assert told == [(0, 0, 7), (8, 4, 40), (6, 3, 0), (2, 1, 13)]
    # Saved by transformers, with the lists beside it and less said of each block, it is the same.
    model = Path(shutil.copytree(pruned, tmp_path / "model"))
    config.save_pretrained(model)
    again = json.loads((model / "config.json").read_text())
    assert again["per_layer_config"]["0"] == written["per_layer_config"]["0"]
    assert "1" not in again["per_layer_config"]
    assert "intermediate_size_per_layer" in again
    changes = {"auto_map": written["auto_map"]}
    (model / "config.json").write_text(json.dumps({**again, **changes}))
    assert open_checkpoint(model).shape == open_checkpoint(pruned).shape


@pytest.mark.parametrize("name", WITH_CLASS)
def test_stock_classes_do_not_compute_with_widths_of_blocks_yet(name: str) -> None:
    """The day that one does, its models need no code of ours any more."""
    config = AutoConfig.for_model(
        name, hidden_size=32, num_attention_heads=8, num_key_value_heads=4, head_dim=4,
        intermediate_size=40, num_hidden_layers=2, vocab_size=96, pad_token_id=None,
        per_layer_config={"1": {"intermediate_size": 13}},
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="'intermediate_size' is a per-layer attribute"):
        AutoModelForCausalLM.from_config(config)


def test_a_model_of_before_is_read_and_says_its_widths_anew_once_it_is_pruned(
    pruned: Path, tmp_path: Path
) -> None:
    model = listed(Path(shutil.copytree(pruned, tmp_path / "model")))
    checkpoint = open_checkpoint(model)
    assert checkpoint.shape == open_checkpoint(pruned).shape
    assert checkpoint.tensor_digest == open_checkpoint(pruned).tensor_digest
    windows = token_windows()
    one, other = (
        BlockLoop(open_checkpoint(each), torch.float64).logits(windows) for each in (model, pruned)
    )
    assert torch.equal(one, other)
    blocks = [kept([], [6]), kept([3], [39]), kept([2], []), kept([0], [12])]
    out = tmp_path / "out"
    prune(checkpoint, plan_of(checkpoint, blocks), out)
    assert "per_layer_config" in json.loads((out / "config.json").read_text())
    assert (out / "modeling_per_layer.py").read_bytes() != EARLIER_CODE.read_bytes()


NAMES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
    "seed_oss": "SeedOss", "ministral": "Ministral", "smollm3": "SmolLM3", "granite": "Granite",
    "gemma": "Gemma", "ernie4_5": "Ernie45", "hunyuan_v1_dense": "HunYuanDenseV1",
    "internlm3": "InternLM3", "helium": "Helium", "olmo": "Olmo", "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text", "olmo2": "Olmo2", "olmo3": "Olmo3", "exaone4": "Exaone4",
    "glm": "Glm", "glm4": "Glm4", "phi3": "Phi3",
    "starcoder2": "Starcoder2", "nemotron": "Nemotron",
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_CLASS)
def test_every_family_ships_its_class_in_files_that_need_no_bipline(name: str) -> None:
    model_type, module = PER_LAYER_PREFIX + name, f"modeling_per_layer_{name}"
    assert auto_map(model_type) == {
        "AutoConfig": f"{module}.PerLayer{NAMES[name]}Config",
        "AutoModelForCausalLM": f"{module}.PerLayer{NAMES[name]}ForCausalLM",
    }
    assert own_class(model_type).config_class.model_type == model_type
    files = code_files({"model_type": model_type})
    assert set(files) == {"modeling_per_layer.py", f"{module}.py"}
    for text in files.values():
        assert not imported_modules(text.decode("utf-8"))


def test_shipped_code_is_part_of_the_key_of_the_stage_that_ships_it() -> None:
    reached = import_closure("bipline.compression.prune")
    shipped = Path(modeling_per_layer.__file__).parent.glob("modeling_*.py")
    assert {f"bipline.model.per_layer.{path.stem}" for path in shipped} <= set(reached)
