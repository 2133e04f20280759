"""A per-layer model as a package: it brings our code and no other, and loads where we are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput, Refused
from bipline.compression.prune import prune
from bipline.delivery.export import PackageContents, _refuse_unfit
from bipline.delivery.verification import verify_hf
from bipline.model.opening import open_checkpoint
from bipline.quality.evaluate import evaluate
from bipline.settings.protocol import Protocol
from bipline.storage.manifest import read_manifest, verify_directory
from tests.delivery.conftest import altered, write
from tests.per_layer import kept, listed, plan_of

FRESH = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
tokens = tokenizer("The 3rd cat sat", return_tensors="pt")
made = [
    model.generate(**tokens, max_new_tokens=9, min_new_tokens=9, do_sample=False, use_cache=cache)
    for cache in (True, False)
]
assert "bipline" not in sys.modules
print(json.dumps({
    "class": type(model).__name__,
    "parameters": sum(p.numel() for p in model.parameters()),
    "same": torch.equal(*made),
}))
"""
CODE = "modeling_per_layer_llama.py"


@pytest.fixture(scope="module")
def mixed(contents: PackageContents, tmp_path_factory: pytest.TempPathFactory) -> PackageContents:
    """The dense model of the other packages, along a plan whose three blocks differ."""
    directory = tmp_path_factory.mktemp("mixed")
    checkpoint = open_checkpoint(contents.dense)
    blocks = [kept([], [*range(0, 96, 2)]), kept([0, 1, 3], []), kept([1, 2], [*range(40)])]
    plan = plan_of(checkpoint, blocks)
    prune(checkpoint, plan, directory / "pruned")
    held_out = {"held-out": contents.dense.parent / "held-out.txt"}
    record = evaluate(directory / "pruned", Protocol(seqlen=32), held_out, {})
    records = {**contents.records, "pruned": record}
    return altered(contents, model=directory / "pruned", plan=plan, records=records)


@pytest.fixture(scope="module")
def mixed_package(mixed: PackageContents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed-package") / "package"
    write(mixed, out)
    return out


@pytest.mark.slow
def test_it_loads_in_a_process_without_bipline(
    mixed: PackageContents, mixed_package: Path, tmp_path: Path
) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "PYTHONPATH": ""}
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, str(mixed_package / "hf")],
        capture_output=True,
        text=True,
        check=True,
        cwd=mixed_package,
        env={**os.environ, **environment},
    )
    found = json.loads(answer.stdout)
    info = read_manifest(mixed.model).info
    assert found["class"] == info["architecture"] == "PerLayerLlamaForCausalLM"
    assert found["parameters"] == info["parameters"]
    assert found["same"]


def test_the_manifest_lists_the_code_and_declares_every_width(mixed_package: Path) -> None:
    manifest = verify_directory(mixed_package)
    assert {name for name in manifest.files if name.endswith(".py")} == {
        "hf/modeling_per_layer.py",
        f"hf/{CODE}",
    }
    readme = (mixed_package / "hf" / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code=True" in readme
    for name in (CODE, "modeling_per_layer.py"):
        assert manifest.files[f"hf/{name}"].sha256 in readme


def test_the_model_declares_the_widths_of_every_block(mixed: PackageContents) -> None:
    assert read_manifest(mixed.model).info["per_layer"] == [
        {"num_key_value_heads": 0, "intermediate_size": 48},
        {"num_key_value_heads": 3, "intermediate_size": 0},
        {"num_key_value_heads": 2, "intermediate_size": 40},
    ]


def test_the_card_says_what_it_takes_to_load_it(mixed_package: Path, package: Path) -> None:
    card = (mixed_package / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("hf", trust_remote_code=True)' in card
    assert "keeps from 0 to 3 of 4 attention groups" in card
    assert "and from 0 to 48 of 96 FFN channels" in card
    assert "trust_remote_code" not in (package / "README.md").read_text(encoding="utf-8")


def tampered(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package / "hf", tmp_path / "hf"))


def refusal(package_hf: Path, contents: PackageContents) -> str:
    with pytest.raises(Refused) as refused:
        verify_hf(package_hf, contents.model, contents.dense)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_code_that_is_not_ours_is_refused(
    mixed: PackageContents, mixed_package: Path, tmp_path: Path
) -> None:
    wrong = tampered(mixed_package, tmp_path)
    verify_hf(wrong, mixed.model, mixed.dense)
    with (wrong / CODE).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert f"{CODE}: is not the code that bipline ships" in refusal(wrong, mixed)
    (wrong / CODE).unlink()
    assert f"{CODE} is missing" in refusal(wrong, mixed)


def test_other_widths_than_the_declared_are_refused(
    mixed: PackageContents, mixed_package: Path, tmp_path: Path
) -> None:
    wrong = tampered(mixed_package, tmp_path)
    path = wrong / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["per_layer_config"]["1"]["intermediate_size"] = 40
    path.write_text(json.dumps(config), encoding="utf-8")
    assert "does not load the package" in refusal(wrong, mixed)
    config["per_layer_config"]["1"]["intermediate_size"] = 0
    config["rms_norm_eps"] = 0.5
    path.write_text(json.dumps(config), encoding="utf-8")
    assert "the logits differ" in refusal(wrong, mixed)


def test_a_manifest_without_the_widths_is_refused(
    mixed: PackageContents, mixed_package: Path, tmp_path: Path
) -> None:
    from tests.delivery.test_export import with_manifest

    model = Path(shutil.copytree(mixed.model, tmp_path / "model"))
    manifest = read_manifest(model)
    info = {name: value for name, value in manifest.info.items() if name != "per_layer"}
    with_manifest(model, manifest.model_copy(update={"info": info}))
    with pytest.raises(Refused, match="does not declare every block's widths"):
        verify_hf(mixed_package / "hf", model, mixed.dense)


@pytest.mark.parametrize("name", [CODE, "modeling_x.py"])
def test_a_model_with_other_code_is_never_packaged(
    mixed: PackageContents, tmp_path: Path, name: str
) -> None:
    model = Path(shutil.copytree(mixed.model, tmp_path / "model"))
    with (model / name).open("a", encoding="utf-8") as file:
        file.write("x = 1\n")
    with pytest.raises(InvalidInput, match=f"{name}: is not the code that bipline ships"):
        write(altered(mixed, model=model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_our_code_beside_a_model_that_needs_none_is_refused(
    mixed: PackageContents, contents: PackageContents, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(contents.model, tmp_path / "model"))
    shutil.copy(mixed.model / CODE, model / CODE)
    with pytest.raises(Refused, match="can run code"):
        write(altered(contents, model=model), tmp_path / "out")


def test_code_in_a_folder_of_a_per_layer_model_is_refused(
    mixed: PackageContents, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(mixed.model, tmp_path / "model"))
    (model / "deeper").mkdir()
    shutil.copy(mixed.model / CODE, model / "deeper" / CODE)
    with pytest.raises(Refused, match="can run code"):
        write(altered(mixed, model=model), tmp_path / "out")


def test_a_package_of_before_is_verified_and_packaged_again(
    mixed: PackageContents, mixed_package: Path, tmp_path: Path
) -> None:
    before = listed(tampered(mixed_package, tmp_path))
    verify_hf(before, mixed.model, mixed.dense)
    _refuse_unfit(before)
