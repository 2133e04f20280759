"""What makes a model directory unusable: each fault is one line that says what and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.model.opening import INDEX_FILE, SINGLE_FILE, open_checkpoint

Damage = Callable[[Path], object]


def edit_config(**changes: object) -> Damage:
    def damage(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(model: Path) -> None:
        tensors = load_file(model / SINGLE_FILE)
        change(tensors)
        save_file(tensors, model / SINGLE_FILE)

    return damage


def with_index(weight_map: dict[str, str]) -> Damage:
    def damage(model: Path) -> None:
        names = dict.fromkeys(load_file(model / SINGLE_FILE), "part.safetensors")
        (model / SINGLE_FILE).rename(model / "part.safetensors")
        (model / INDEX_FILE).write_text(
            json.dumps({"metadata": {}, "weight_map": {**names, **weight_map}})
        )

    return damage


def only_pickle(model: Path) -> None:
    (model / SINGLE_FILE).rename(model / "pytorch_model.bin")


def truncate(model: Path) -> None:
    path = model / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])


def two_shards(model: Path) -> None:
    with_index({})(model)
    name = "model.norm.weight"
    tensor = load_file(model / "part.safetensors")[name]
    save_file({name: tensor}, model / "again.safetensors")
    index = json.loads((model / INDEX_FILE).read_text())
    index["weight_map"]["x"] = "again.safetensors"
    (model / INDEX_FILE).write_text(json.dumps(index))


NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Damage, str]] = {
    "missing directory": (shutil.rmtree, "no such model directory"),
    "no config": (lambda model: (model / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda model: (model / "config.json").write_text("{"), "not JSON"),
    "config a list": (lambda model: (model / "config.json").write_text("[]"), "not a JSON object"),
    "auto_map": (edit_config(auto_map={"AutoConfig": "x.Y"}), "auto_map"),
    "unknown model type": (edit_config(model_type="mamba"), "'mamba' is not supported"),
    "quantised": (edit_config(quantization_config={"quant_method": "gptq"}), "quantised.*gptq"),
    "no weights": (lambda model: (model / SINGLE_FILE).unlink(), "no model.safetensors"),
    "pickled weights": (only_pickle, "pickled weights"),
    "truncated shard": (truncate, "not a whole safetensors file"),
    "not safetensors": (lambda m: (m / SINGLE_FILE).write_bytes(b"junk" * 9), "not a whole"),
    "index names a missing shard": (with_index({"x": "gone.safetensors"}), "missing"),
    "index climbs out": (with_index({"x": "../x.safetensors"}), "not a plain"),
    "index is absolute": (with_index({"x": "/etc/x.safetensors"}), "not a plain"),
    "index names an absent tensor": (with_index({"x": "part.safetensors"}), "tensor x is not in"),
    "tensor in two shards": (two_shards, "lies in two shards"),
    "missing tensor": (edit_weights(lambda t: t.pop(NORM)), f"{NORM} is missing"),
    "extra tensor": (edit_weights(lambda t: t.update(x=torch.ones(1))), "tensor x does not belong"),
    "wrong shape": (edit_weights(lambda t: t.update({NORM: torch.ones(3)})), r"shape \(3,\)"),
    "integer weights": (
        edit_weights(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int8)})),
        "is I8; quantised",
    ),
    "heads not a multiple": (edit_config(num_key_value_heads=3), "not a multiple"),
    "size missing": (edit_config(hidden_size=None), "hidden_size is None"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_in_one_line(llama: Path, tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    damage(model)
    with pytest.raises(InvalidInput, match=message) as caught:
        open_checkpoint(model)
    assert "\n" not in str(caught.value)


def test_identity_does_not_depend_on_place_or_shards(llama: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(llama, moved)
    with_index({})(moved)
    assert open_checkpoint(moved).tensor_digest == open_checkpoint(llama).tensor_digest


def test_one_changed_weight_is_another_model(llama: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(llama, changed)
    edit_weights(lambda tensors: tensors[NORM].neg_())(changed)
    assert open_checkpoint(changed).tensor_digest != open_checkpoint(llama).tensor_digest


def test_tied_model_may_store_its_output_twice(llama: Path, tmp_path: Path) -> None:
    doubled = tmp_path / "doubled"
    shutil.copytree(llama, doubled)
    edit_weights(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(
        doubled
    )
    assert open_checkpoint(doubled).parameters == open_checkpoint(llama).parameters
