"""Decoders inside other models: found, run and cut as if alone, and nothing around them changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.face import api
from bipline.model.block_loop import BlockLoop
from bipline.model.loading import load_model
from bipline.model.nested import load_whole
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.perplexity import text_windows
from bipline.stages.families import known_families
from bipline.values.plan import PLAN_NAME, read_plan
from tests.model.test_family_switches import another, own_keys
from tests.tiny import config_of, token_windows
from tests.wrapped import DECODERS, edit_config, stored_otherwise, tiny_wrapped

TOLERANCE = 1e-10


@pytest.fixture(scope="module", params=DECODERS)
def wrapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wrapped(tmp_path_factory.mktemp("wrapped") / "model", request.param)


@pytest.fixture(scope="module", params=["as written", "otherwise"])
def source(
    request: pytest.FixtureRequest, wrapped: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    copy = Path(shutil.copytree(wrapped, tmp_path_factory.mktemp("stored") / "model"))
    return copy if request.param == "as written" else stored_otherwise(copy)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("An oak, an elm and a fir stood by the mill. " * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pruned(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pruned")
    api.prune(
        source, place / "out", ratio=0.4, criterion="wanda-sp", samples=4, seqlen=16,
        calibration=text, state=place / "state", dtype="float32",
    )  # fmt: skip
    return place / "out"


def whole(directory: Path) -> Any:
    return load_whole(open_checkpoint(directory), torch.float64)


@torch.no_grad()
def test_the_loop_gives_what_the_whole_model_gives_on_text(source: Path) -> None:
    windows, checkpoint = token_windows(2, 20), open_checkpoint(source)
    expected = whole(source)(windows).logits
    largest = float(expected.abs().max())
    for logits in (
        BlockLoop(checkpoint, torch.float64).logits(windows),
        load_model(checkpoint, torch.float64)(windows).logits,
    ):
        assert float((logits - expected).abs().max()) <= TOLERANCE * largest


@torch.no_grad()
def test_masked_logits_are_those_of_what_was_sliced(source: Path, pruned: Path) -> None:
    plan, dense = read_plan(pruned / PLAN_NAME), whole(source)
    shape = open_checkpoint(source).shape
    width = shape.head_dim * shape.queries_per_group
    for layer, block in zip(dense.model.language_model.layers, plan.blocks, strict=True):
        kept = set(block.attention_groups)
        for group in set(range(shape.num_key_value_heads)) - kept:
            layer.self_attn.o_proj.weight[:, group * width : (group + 1) * width] = 0
        gone = sorted(set(range(shape.intermediate_size)) - set(block.ffn_channels))
        layer.mlp.down_proj.weight[:, gone] = 0
        assert len(kept) > 0 and gone
    windows = token_windows(2, 20)
    expected, found = dense(windows).logits, whole(pruned)(windows).logits
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


@torch.no_grad()
def test_nothing_around_the_decoder_changes(source: Path, pruned: Path) -> None:
    before, after = (load_file(each / "model.safetensors") for each in (source, pruned))
    assert set(before) == set(after)
    around = open_checkpoint(source).beside
    assert around and all(torch.equal(before[name], after[name]) for name in around)
    said = [json.loads((each / "config.json").read_text()) for each in (source, pruned)]
    assert said[0]["vision_config"] == said[1]["vision_config"]
    assert said[1]["architectures"] == said[0]["architectures"]
    assert said[1]["text_config"]["intermediate_size"] < said[0]["text_config"]["intermediate_size"]
    name = "preprocessor_config.json"
    assert (source / name).read_bytes() == (pruned / name).read_bytes()


def test_identity_covers_what_lies_around(source: Path, tmp_path: Path) -> None:
    first = open_checkpoint(source)
    copy = Path(shutil.copytree(source, tmp_path / "model"))
    tensors = load_file(copy / "model.safetensors")
    name = min(first.beside)
    save_file({**tensors, name: tensors[name] + 1}, copy / "model.safetensors", {"format": "pt"})
    other = open_checkpoint(copy)
    assert other.tensor_digest != first.tensor_digest
    assert other.parameters == sum(each.numel() for each in tensors.values())


@torch.no_grad()
def test_perplexity_is_that_of_the_whole_model(pruned: Path, tmp_path: Path) -> None:
    text = tmp_path / "held.txt"
    text.write_text("Seven yews and some larches were felled on Monday by the river. " * 9)
    record = api.evaluate(pruned, texts={"held": text}, seqlen=16, state=tmp_path)["model"]
    windows = text_windows(load_tokenizer(pruned), [text.read_text()], 16, "none")
    logits = whole(pruned)(windows).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
    assert record.perplexity["held"].value == pytest.approx(float(loss.exp()), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_config": None}, "has no text_config"),
        ({"text_config": {"model_type": "llama"}}, "is of 'llama'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised source"),
    ],
)
def test_configs_that_hold_no_such_decoder_are_refused(
    wrapped: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    copy = Path(shutil.copytree(wrapped, tmp_path / "model"))
    with pytest.raises(InvalidInput, match=said):
        open_checkpoint(edit_config(copy, **changes))


def test_a_tensor_of_neither_part_is_refused(wrapped: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(wrapped, tmp_path / "model"))
    file = copy / "model.safetensors"
    save_file({**load_file(file), "audio_tower.weight": torch.ones(2)}, file, {"format": "pt"})
    with pytest.raises(InvalidInput, match=r"audio_tower\.weight does not belong"):
        open_checkpoint(copy)


def test_sizes_that_a_published_config_leaves_out_are_its_class() -> None:
    from transformers import AutoConfig

    from bipline.model.wrappers import wrappers

    for model_type, wrapper in wrappers().items():
        made = AutoConfig.for_model(model_type, text_config={}).text_config
        assert made.model_type == wrapper.decoder
        for key, value in wrapper.text_defaults.items():
            assert getattr(made, key) == value, key
        assert AutoConfig.for_model(model_type).tie_word_embeddings == wrapper.tied


def test_what_nothing_holds_is_refused(wrapped: Path, text: Path, tmp_path: Path) -> None:
    places = {"out": tmp_path / "out", "state": tmp_path / "state"}
    with pytest.raises(InvalidInput, match="take the uniform layout"):
        api.prune(
            wrapped, ratio=0.4, criterion="magnitude", samples=4, seqlen=16, calibration=text,
            layout="per-layer", **places,
        )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("model_type", DECODERS)
def test_a_switch_of_the_decoder_is_followed_inside_too_or_refused(
    model_type: str, tmp_path: Path
) -> None:
    windows, kept = token_windows(2, 20), 0
    case = config_of(DECODERS[model_type])
    for key, default in own_keys(case["model_type"]).items():
        for number, value in enumerate(another(case.get(key, default))):
            place = tmp_path / f"{key}-{number}"
            try:
                checkpoint = open_checkpoint(tiny_wrapped(place, model_type, **{key: value}))
                logits = BlockLoop(checkpoint, torch.float64).logits(windows)
            except Exception as error:  # transformers has many ways to refuse a value
                assert isinstance(error, InvalidInput) or not (place / "config.json").exists()
                continue
            expected = whole(place)(windows).logits
            assert float((logits - expected).abs().max()) <= TOLERANCE * float(
                expected.abs().max()
            ), (key, value)
            kept += 1
    assert kept > 5


def test_the_table_has_them(wrapped: Path) -> None:
    model_type = open_checkpoint(wrapped).nesting.config["model_type"]
    [row] = known_families(model_type).families
    assert row.layouts == ("uniform",) and "attention groups" in row.cuts
    assert row.exports["gguf"] == {"gemma3": ("gemma3",), "mistral3": ("llama",)}[model_type]
    assert model_type in {each.model_type for each in known_families().families}
