"""A directory whose blocks differ in width: read as data, its code held to ours to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.compression.prune import check_plan
from bipline.model.block_loop import BlockLoop
from bipline.model.block_reader import ALIGNMENT, BlockReader
from bipline.model.devices import CPU
from bipline.model.families import exported_config, with_blocks
from bipline.model.floor import forward_operations
from bipline.model.loading import load_model
from bipline.model.memory import memory_need
from bipline.model.opening import SINGLE_FILE, open_checkpoint
from bipline.model.shapes import ModelShape
from tests.per_layer import EARLIER_CODE, LAYERS, kept, listed, plan_of
from tests.tiny import token_windows

Damage = Callable[[Path], object]


def file_with_json(name: str, **changes: object) -> Damage:
    def damage(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def config_with(**changes: object) -> Damage:
    return file_with_json("config.json", **changes)


def blocks_with(place: str, **sizes: object) -> Damage:
    """Other sizes of one block in per_layer_config; None takes the size out."""

    def damage(model: Path) -> None:
        path = model / "config.json"
        config = json.loads(path.read_text())
        own = {**config["per_layer_config"].get(place, {}), **sizes}
        config["per_layer_config"][place] = {k: v for k, v in own.items() if v is not None}
        path.write_text(json.dumps(config))

    return damage


def before(damage: Damage) -> Damage:
    """Damage to a model whose widths stand in lists."""
    return lambda model: damage(listed(model))


def file_with(name: str, text: str) -> Damage:
    def damage(model: Path) -> None:
        with (model / name).open("a", encoding="utf-8") as file:
            file.write(text)

    return damage


def norm_comes_back(model: Path) -> None:
    tensors = load_file(model / SINGLE_FILE)
    tensors["model.layers.0.input_layernorm.weight"] = torch.ones(32, dtype=torch.float64)
    save_file(tensors, model / SINGLE_FILE)


CODE = "modeling_per_layer_llama.py"
FAULTS: dict[str, tuple[Damage, str]] = {
    "edited code": (file_with(CODE, "\n"), f"{CODE}: is not the code that bipline ships"),
    "edited shared code": (file_with("modeling_per_layer.py", "#"), "is not the code that bipline"),
    "more code": (file_with("tokenization_x.py", "x = 1"), "tokenization_x.py: is not the code"),
    "tokenizer with code": (
        file_with_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["a/b--x.Y", None]}),
        "tokenizer_config.json: auto_map asks for the tokenizer's own code",
    ),
    "tokenizer that is no JSON": (file_with("tokenizer_config.json", "{"), "config.json: not JSON"),
    "tokenizer that is a number": (
        lambda folder: (folder / "tokenizer_config.json").write_text("3"),
        "not a JSON object",
    ),
    "foreign auto_map": (config_with(auto_map={"AutoConfig": "x.Y"}), "does not name bipline's"),
    "no auto_map": (config_with(auto_map=None), "does not name bipline's own"),
    "stock type, our auto_map": (config_with(model_type="llama"), "auto_map asks for the model's"),
    "another family": (config_with(model_type="per_layer_qwen2"), "does not name bipline's own"),
    "unknown family": (config_with(model_type="per_layer_mamba"), "'per_layer_mamba' is not supp"),
    "path for a family": (config_with(model_type="per_layer_../x"), "'per_layer_../x' is not supp"),
    "no list": (before(config_with(intermediate_size_per_layer=None)), "a list"),
    "short list": (before(config_with(num_key_value_heads_per_layer=[4])), "a list"),
    "negative width": (
        before(config_with(intermediate_size_per_layer=[7, 40, -1, 13])), "a list",
    ),
    "listed heads out of step": (
        before(config_with(num_attention_heads_per_layer=[0, 8, 6, 4])), "differ in the query",
    ),
    "no widths": (config_with(per_layer_config=None), "a list"),
    "widths that are a list": (config_with(per_layer_config=[]), "not an object of blocks"),
    "a block too many": (blocks_with("4", intermediate_size=1), "has a block '4'; there are 4"),
    "a block twice": (blocks_with("00", intermediate_size=7), "has a block '00'"),
    "a block by another name": (blocks_with("last"), "has a block 'last'"),
    "a negative block": (blocks_with("-1"), "has a block '-1'"),
    "another size": (blocks_with("1", head_dim=4), "block 1 says other than num_attention_heads"),
    "a size that is a text": (blocks_with("1", intermediate_size="40"), "a list"),
    "a negative size": (blocks_with("1", intermediate_size=-1), "a list"),
    "widths said twice": (
        config_with(intermediate_size_per_layer=[7, 40, 0, 14]), "other widths than per_layer_con",
    ),
    "code of before": (
        lambda model: shutil.copy(EARLIER_CODE, model / "modeling_per_layer.py"),
        "is of an earlier bipline, which reads no per_layer_config",
    ),
    "heads out of step": (blocks_with("3", num_attention_heads=4), "differ in the query heads"),
    "widest block": (config_with(intermediate_size=48), "is 48, its widest block has 40"),
    "other width": (
        blocks_with("3", intermediate_size=14),
        r"layers.3.mlp.gate_proj.weight has shape \(13, 32\), config.json says \(14, 32\)",
    ),
    "sublayer that is not there": (
        blocks_with("2", intermediate_size=5), "layers.2.mlp.gate_proj.weight is missing",
    ),
    "tensor of a dropped sublayer": (norm_comes_back, "layers.0.input_layernorm.weight does not"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_in_one_line(pruned: Path, tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    model = Path(shutil.copytree(pruned, tmp_path / "model"))
    damage(model)
    with pytest.raises(InvalidInput, match=message) as caught:
        open_checkpoint(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [open_checkpoint, lambda path: load_model(path, torch.float64)])
def test_edited_code_is_never_run(pruned: Path, tmp_path: Path, load: Callable[..., Any]) -> None:
    model = Path(shutil.copytree(pruned, tmp_path / "model"))
    file_with(CODE, f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")(model)
    with pytest.raises(InvalidInput, match="is not the code that bipline ships"):
        load(model)
    assert not (tmp_path / "ran").exists()


def test_code_that_is_missing_is_not_needed_by_us(pruned: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(pruned, tmp_path / "model"))
    (model / CODE).unlink()
    assert open_checkpoint(model).tensor_digest == open_checkpoint(pruned).tensor_digest


def test_widths_of_every_block_are_known(pruned: Path) -> None:
    checkpoint = open_checkpoint(pruned)
    blocks = [checkpoint.shape.block(index) for index in range(4)]
    assert [(b.num_key_value_heads, b.intermediate_size) for b in blocks] == [
        (0, 7), (4, 40), (3, 0), (1, 13),
    ]  # fmt: skip
    assert [block.num_attention_heads for block in blocks] == [0, 8, 6, 2]
    stored = sum(
        held.elements
        for name, held in checkpoint.tensors.items()
        if ".layers." in name and "_proj.weight" in name
    )
    assert checkpoint.shape.linear_weights == stored


def test_memory_is_that_of_the_largest_block(pruned: Path, dense: Path) -> None:
    loop = BlockLoop(open_checkpoint(pruned), torch.float64)
    largest = BlockLoop(open_checkpoint(dense), torch.float64).reader.elements
    assert loop.reader.elements == largest
    need = memory_need(loop, token_windows(), logits=False)
    assert need.weights == 2 * largest * 8
    narrow = memory_need(BlockLoop(open_checkpoint(pruned), torch.float32), token_windows(), False)
    # In another dtype each tensor is converted on the way: the largest lies in the widest block.
    assert narrow.weights == 2 * largest * 4 + 40 * 32 * 8
    assert largest % ALIGNMENT == 0


@pytest.mark.parametrize("by_transfer", [True, False])
def test_blocks_of_any_width_follow_each_other_in_the_same_memory(
    pruned: Path, by_transfer: bool
) -> None:
    checkpoint = open_checkpoint(pruned)
    reader = BlockReader(checkpoint, torch.float32, CPU, by_transfer=by_transfer)
    for index, weights in reader.blocks([0, 1, 2, 3, 1, 0]):
        expected = checkpoint.block_weights(index)
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            assert weights[name].equal(tensor.float())


def test_operations_are_counted_block_by_block(pruned: Path) -> None:
    shape = open_checkpoint(pruned).shape
    alone = sum(forward_operations(shape.block(index), 3, 16) for index in range(4))
    assert forward_operations(shape, 3, 16) == alone
    assert alone < 4 * forward_operations(shape.block(1), 3, 16)


def test_plans_that_leave_no_model_are_refused(dense: Path) -> None:
    checkpoint = open_checkpoint(dense)
    nothing, channels = kept([], []), kept([], [0, 1])
    whole, narrow, attention = kept([0, 1], [0, 1]), kept([0], [0]), kept([0], [])
    cases = [
        ([nothing] * LAYERS, "per-layer", "keeps no attention in any block"),
        ([channels] * LAYERS, "per-layer", "keeps no attention in any block"),
        ([whole] * 4 + [narrow], "uniform", "differ in width"),
        ([whole] * 4 + [channels], "uniform", "differ in width"),
        ([attention] * LAYERS, "uniform", "drops the FFN of every block"),
        ([whole] * 4, "per-layer", "has 4 blocks, not 5"),
        ([whole] * 4 + [kept([4], [0])], "per-layer", "a group that block 4 does not have"),
        ([whole] * 4 + [kept([], [40])], "per-layer", "an FFN channel that block 4 does not have"),
    ]
    for blocks, layout, message in cases:
        with pytest.raises(InvalidInput, match=message):
            check_plan(checkpoint, plan_of(checkpoint, blocks, layout))


def test_uniform_widths_that_a_block_does_not_have_are_refused(pruned: Path) -> None:
    config = open_checkpoint(pruned).config
    with pytest.raises(InvalidInput, match=r"block 0 has 0 attention groups and 7 FFN channels"):
        exported_config(config, 7, 1)
    with pytest.raises(InvalidInput, match=r"block 3 has 1 .* can keep 1 and 14"):
        exported_config(config, 14, 1, [1, 3])
    assert exported_config(config, 13, 1, [1, 3])["num_hidden_layers"] == 2


def test_a_tokenizer_with_code_gets_no_model_that_asks_for_trust(
    dense: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(dense, tmp_path / "model"))
    file_with_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]})(model)
    checkpoint = open_checkpoint(model)
    blocks = [kept([0], [0])] * LAYERS
    check_plan(checkpoint, plan_of(checkpoint, blocks, "uniform"))
    with pytest.raises(InvalidInput, match="or use the uniform layout"):
        check_plan(checkpoint, plan_of(checkpoint, blocks))


def test_a_plan_for_a_per_layer_model_is_held_to_each_block(pruned: Path) -> None:
    checkpoint = open_checkpoint(pruned)
    blocks = [kept([], [6]), kept([3], [39]), kept([2], []), kept([0], [12])]
    check_plan(checkpoint, plan_of(checkpoint, blocks))
    for index, wrong in enumerate([kept([0], [6]), kept([3], [40]), kept([2], [0]), kept([1], [])]):
        changed = [*blocks[:index], wrong, *blocks[index + 1 :]]
        with pytest.raises(InvalidInput, match=f"that block {index} does not have"):
            check_plan(checkpoint, plan_of(checkpoint, changed))


def test_what_a_config_says_of_each_block_follows_its_blocks() -> None:
    kinds = ["full_attention"] * 3 + ["sliding_attention"] * 2
    config = {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 40, "vocab_size": 96,
        "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 5,
        "layer_types": kinds, "max_window_layers": 3, "use_sliding_window": True,
    }  # fmt: skip
    changed = with_blocks(config, [0, 2, 4])
    assert changed["layer_types"] == [kinds[0], kinds[2], kinds[4]]
    assert (changed["num_hidden_layers"], changed["max_window_layers"]) == (3, 2)
    assert with_blocks(config, range(5)) == config
    assert exported_config(config, 8, 2, [4])["layer_types"] == ["sliding_attention"]
    with pytest.raises(InvalidInput, match="layer_types has not one entry for each of 5 blocks"):
        with_blocks({**config, "layer_types": kinds[:3]}, [0])


def test_a_shape_of_equal_blocks_gives_each_of_them() -> None:
    shape = ModelShape(
        hidden_size=32, intermediate_size=40, num_attention_heads=8, num_key_value_heads=4,
        head_dim=4, num_hidden_layers=3, vocab_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    assert shape.block(2) == shape.model_copy(update={"num_hidden_layers": 1})
    assert shape.linear_weights == 3 * shape.block(0).block_weights == 3 * shape.block_weights
