"""Packages: they load in a fresh process, say what they hold, and a wrong model is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput, Refused
from bipline.delivery.contents import portable
from bipline.delivery.export import PackageContents, verify_hf
from bipline.model.opening import open_checkpoint
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import Manifest, read_manifest, verify_directory
from bipline.values.plan import read_plan
from bipline.values.resolution import read_resolution
from tests.delivery.conftest import altered, make_tokenizer, with_recovery, write

FRESH = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
places = sys.argv[1:]
answers = []
for place in places:
    model = AutoModelForCausalLM.from_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokens = tokenizer("The 3rd cat sat", return_tensors="pt")
    made = model.generate(**tokens, max_new_tokens=5, do_sample=False)
    answers.append({
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shapes": {name: list(p.shape) for name, p in model.named_parameters()},
        "heads": model.config.num_attention_heads,
        "made": made.shape[1] - tokens["input_ids"].shape[1],
    })
assert "bipline" not in sys.modules
print(json.dumps(answers))
"""
DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b")


@pytest.fixture(scope="module")
def halved_package(halved: PackageContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("halved-package") / "package"
    write(with_recovery(halved), out)
    return out


@pytest.fixture(scope="module")
def loaded(package: Path, halved_package: Path) -> list[dict[str, Any]]:
    """What plain transformers makes of both packages in a process of its own."""
    places = [str(place / "hf") for place in (package, halved_package)]
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, *places],
        capture_output=True,
        text=True,
        check=True,
        cwd=package,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    result: list[dict[str, Any]] = json.loads(answer.stdout)
    return result


def test_heads_that_do_not_divide_hidden_size_load_as_mistral(
    loaded: list[dict[str, Any]], package: Path
) -> None:
    answer, info = loaded[0], read_manifest(package).info
    assert (answer["class"], answer["heads"]) == ("MistralForCausalLM", 6)
    assert info["architecture"] == "MistralForCausalLM"
    assert answer["parameters"] == info["parameters"]
    assert answer["made"] == 5


def test_heads_that_divide_and_tied_embeddings_load_as_llama(
    loaded: list[dict[str, Any]], halved_package: Path
) -> None:
    answer, info = loaded[1], read_manifest(halved_package).info
    assert (answer["class"], answer["heads"]) == ("LlamaForCausalLM", 4)
    assert answer["parameters"] == info["parameters"]
    assert "lm_head.weight" not in answer["shapes"]
    assert answer["made"] == 5


def test_every_shape_is_the_declared_one(
    loaded: list[dict[str, Any]], contents: PackageContents
) -> None:
    declared = read_manifest(contents.model).info
    prefix, shapes = "model.layers.2.", loaded[0]["shapes"]
    width = declared["num_attention_heads"] * declared["head_dim"]
    assert shapes[prefix + "self_attn.q_proj.weight"] == [width, 64]
    assert shapes[prefix + "self_attn.o_proj.weight"] == [64, width]
    assert shapes[prefix + "self_attn.k_proj.weight"] == [3 * 8, 64]
    assert shapes[prefix + "mlp.down_proj.weight"] == [64, declared["intermediate_size"]]
    assert len(shapes) == declared["tensors"]


def test_the_manifest_lists_and_declares_the_package(
    contents: PackageContents, package: Path
) -> None:
    manifest = verify_directory(package)
    assert manifest.kind == "package"
    assert {name for name in manifest.files if "/" not in name} == {
        "README.md",
        "bom.json",
        "configuration.json",
        "evaluation.json",
        "items.json",
        "pruning_plan.json",
        "report.html",
        "resolution.json",
    }
    assert manifest.info["tensor_digest"] == open_checkpoint(contents.model).tensor_digest
    assert manifest.info["ratio"]["reached_blocks"] == contents.plan.budget.reached_blocks
    value = contents.records["pruned"].perplexity["held-out"].value
    assert manifest.info["perplexity"]["pruned"]["held-out"] == value


def test_the_documents_can_be_read_back(contents: PackageContents, package: Path) -> None:
    assert read_plan(package / "pruning_plan.json") == contents.plan
    assert read_resolution(package / "resolution.json").digest == contents.resolution.digest
    asked = json.loads((package / "configuration.json").read_text(encoding="utf-8"))
    assert asked == portable(contents.config)
    evaluation = json.loads((package / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["packaged"] == "pruned"
    record = contents.records["dense"]
    assert evaluation["records"]["dense"] == record.to_json_value()


def test_the_same_inputs_give_the_same_bytes(
    contents: PackageContents, package: Path, tmp_path: Path
) -> None:
    moved = altered(
        contents,
        model=Path(shutil.copytree(contents.model, tmp_path / "elsewhere")),
        statistics=Path(shutil.copytree(contents.statistics, tmp_path / "sums")),
    )
    again = write(moved, tmp_path / "package")
    assert again.files == read_manifest(package).files
    assert again.digest == read_manifest(package).digest


def test_no_local_path_and_no_date_in_any_text(package: Path, contents: PackageContents) -> None:
    temporary = str(contents.dense.parents[1])
    for name in verify_directory(package).files:
        if name.endswith(".safetensors"):
            assert temporary.encode() not in (package / name).read_bytes()
            continue
        text = (package / name).read_text(encoding="utf-8")
        assert temporary not in text, name
        assert "/tmp" not in text and str(Path.cwd()) not in text, name
        assert not DATE.search(text), (name, DATE.search(text))


def damaged_hf(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package / "hf", tmp_path / "hf"))


def refusal(package_hf: Path, contents: PackageContents) -> str:
    with pytest.raises(Refused) as refused:
        verify_hf(package_hf, contents.model, contents.dense)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def change_tensor(directory: Path, name: str) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"]
)
def test_other_weights_are_refused(
    contents: PackageContents, package: Path, tmp_path: Path, name: str
) -> None:
    wrong = damaged_hf(package, tmp_path)
    change_tensor(wrong, name)
    assert f"{name} does not hold the values" in refusal(wrong, contents)


def test_another_model_is_refused(contents: PackageContents, halved: PackageContents) -> None:
    assert "not in both" in refusal(halved.model, contents)
    assert "has shape" in refusal(contents.dense, contents)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 0.5), ("rope_parameters", {"rope_theta": 9.0, "rope_type": "default"})],
)
def test_a_config_that_computes_otherwise_is_refused(
    contents: PackageContents, package: Path, tmp_path: Path, key: str, value: Any
) -> None:
    wrong = damaged_hf(package, tmp_path)
    change_config(wrong, {key: value})
    assert "the logits differ" in refusal(wrong, contents)


def change_config(directory: Path, values: dict[str, Any]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")


def test_a_config_that_does_not_load_is_refused(
    contents: PackageContents, package: Path, tmp_path: Path
) -> None:
    wrong = damaged_hf(package, tmp_path)
    change_config(wrong, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert "not a multiple of num_attention_heads" in refusal(wrong, contents)
    change_config(wrong, {"model_type": "mistral", "architectures": ["MistralForCausalLM"]})
    (wrong / "model.safetensors").write_bytes(b"not tensors")
    assert "transformers does not load" in refusal(wrong, contents)


def test_a_missing_tensor_is_refused(
    contents: PackageContents, package: Path, tmp_path: Path
) -> None:
    wrong = damaged_hf(package, tmp_path)
    tensors = load_file(wrong / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, wrong / "model.safetensors", {"format": "pt"})
    assert "transformers does not load" in refusal(wrong, contents)


def test_another_tokenizer_is_refused(
    contents: PackageContents, package: Path, tmp_path: Path
) -> None:
    wrong = damaged_hf(package, tmp_path)
    make_tokenizer(wrong, vocab_size=300)
    assert "tokenizer has another vocabulary" in refusal(wrong, contents)
    make_tokenizer(wrong, add_prefix_space=True)
    assert "tokenizer gives other ids" in refusal(wrong, contents)
    (wrong / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "tokenizer cannot be used" in refusal(wrong, contents)


def test_a_tokenizer_above_the_vocabulary_is_refused(
    contents: PackageContents, package: Path, tmp_path: Path
) -> None:
    wrong = damaged_hf(package, tmp_path)
    dense = Path(shutil.copytree(contents.dense, tmp_path / "dense"))
    for directory in (wrong, dense):
        make_tokenizer(directory, vocab_size=400)
    with pytest.raises(Refused, match="above the model's vocabulary of 320"):
        verify_hf(wrong, contents.model, dense)


def refused_package(contents: PackageContents, out: Path, error: type[Exception] = Refused) -> str:
    with pytest.raises(error) as refused:
        write(contents, out)
    assert not out.exists() and "\n" not in str(refused.value)
    return str(refused.value)


def with_manifest(directory: Path, manifest: Manifest) -> None:
    """List a changed directory anew: a consistent rewrite that no hash betrays."""
    staging = directory.with_name("staging")
    (directory / "manifest.json").unlink()
    with atomic_directory(staging, "model") as writer:
        shutil.copytree(directory, writer.path, dirs_exist_ok=True)
        writer.info = manifest.info
    shutil.rmtree(directory)
    staging.rename(directory)


def test_a_changed_byte_of_the_model_is_refused(contents: PackageContents, tmp_path: Path) -> None:
    model = Path(shutil.copytree(contents.model, tmp_path / "model"))
    path = model / "generation_config.json"
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    message = refused_package(altered(contents, model=model), tmp_path / "out")
    assert "generation_config.json: does not match its sha256" in message


def test_a_consistent_rewrite_is_refused_by_the_record(
    contents: PackageContents, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(contents.model, tmp_path / "model"))
    change_tensor(model, "model.norm.weight")
    change_tensor(model, "model.layers.0.mlp.gate_proj.weight")
    with_manifest(model, read_manifest(contents.model))
    message = refused_package(altered(contents, model=model), tmp_path / "out")
    assert "the record of the pruned model is about" in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adapter_config.json", "an adapter of another model"),
        ("modeling_tiny.py", "can run code"),
        ("pytorch_model.bin", "can run code"),
    ],
)
def test_adapters_and_code_are_refused(
    contents: PackageContents, tmp_path: Path, name: str, reason: str
) -> None:
    model = Path(shutil.copytree(contents.model, tmp_path / "model"))
    (model / name).write_text("{}", encoding="utf-8")
    assert reason in refused_package(altered(contents, model=model), tmp_path / "out")


def test_contents_about_different_models_are_refused(
    contents: PackageContents, halved: PackageContents, tmp_path: Path
) -> None:
    mixed = {
        "plan: made for model": altered(contents, plan=halved.plan),
        "scores: made for model": altered(contents, statistics=halved.statistics),
        "seqlen is 32 in one and 64": altered(contents, records=other_protocol(contents)),
        "no recovery was accepted": altered(contents, records=with_recovery(contents).records),
    }
    for reason, wrong in mixed.items():
        assert reason in refused_package(wrong, tmp_path / "out")


def other_protocol(contents: PackageContents) -> dict[str, Any]:
    pruned = contents.records["pruned"]
    changed = pruned.model_copy(update={"protocol": {**pruned.protocol, "seqlen": 64}})
    return {**contents.records, "pruned": changed}


def test_a_plan_that_was_given_needs_no_scores(contents: PackageContents, tmp_path: Path) -> None:
    write(altered(contents, statistics=None), tmp_path / "out")
    assert read_plan(tmp_path / "out" / "pruning_plan.json") == contents.plan
    for name in ("README.md", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "no scores: the plan was given" in text.lower()


def test_unknown_formats_and_missing_records_are_bad_input(
    contents: PackageContents, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    unknown = altered(contents, formats=("hf", "tflite"))
    assert "'tflite' is unknown" in refused_package(unknown, out, InvalidInput)
    without = altered(contents, records={"pruned": contents.records["pruned"]})
    assert "no evaluation record of the dense" in refused_package(without, out, InvalidInput)
