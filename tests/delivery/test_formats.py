"""Formats of a package: asked before there is one, written into it, and told by its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput, Refused
from bipline.delivery import verification
from bipline.delivery.export import PackageContents
from bipline.delivery.formats.registry import FORMATS
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model
from bipline.settings.compress import CompressSettings, ExportSettings
from bipline.settings.gguf import GgufSettings
from bipline.settings.line import CompensateSettings
from bipline.stages import export, formats
from bipline.stages.stage import Context
from bipline.storage.local_store import LocalStore
from bipline.storage.manifest import verify_directory
from bipline.values.export import ExportRecord
from tests.delivery.conftest import altered, write
from tests.gguf_tokenizers import KINDS, VOCAB_SIZE, save
from tests.per_layer import kept, plan_of
from tests.tiny import tiny_model

BOTH: Any = ("hf", "gguf")


def model_of(folder: Path, case: str) -> Path:
    model = tiny_model(folder / case, case, dtype=torch.float32, vocab_size=VOCAB_SIZE)
    return save(KINDS["gpt-2"](), model)


def settings_of(model: Path, **sections: Any) -> CompressSettings:
    values = {"model": str(model), "texts": {"calibration": "a", "held-out": "b"}}
    return CompressSettings.model_validate({**values, "export": {"formats": BOTH}, **sections})


def test_a_package_holds_a_quantised_gguf_with_figures_of_its_own(
    contents: PackageContents, package: Path, tmp_path: Path
) -> None:
    out, chosen = tmp_path / "package", GgufSettings(type="q4_0", seqlen=32, windows=3)
    both = altered(contents, formats=BOTH, format_settings={"gguf": chosen})
    manifest = write(both, out)
    assert verify_directory(out) == manifest
    assert {f"gguf/{name}" for name in ("model.gguf", "export.json", "README.md")} < {
        *manifest.files
    }
    assert manifest.info["formats"] == ["hf", "gguf"]
    record = ExportRecord.model_validate_json((out / "gguf" / "export.json").read_text())
    assert json.loads((out / "evaluation.json").read_text())["formats"] == {
        "gguf": record.model_dump(mode="json")
    }
    assert (record.type, record.origin.plan_digest) == ("q4_0", contents.plan.digest)
    assert record.origin.tensor_digest == manifest.info["tensor_digest"]
    measured = record.perplexity["held-out"]
    assert measured.engine.tokens == measured.model.tokens == 3 * 31
    assert measured.engine.value != measured.model.value
    card = (out / "README.md").read_text()
    assert f"| held-out | {measured.engine.value:.4f} | {measured.model.value:.4f} | 93 |" in card
    assert "llama-server -m gguf/model.gguf" in card
    assert 'from_pretrained("hf")' in card
    # What stands beside it is what a package without it holds.
    alone = {name for name in manifest.files if not name.startswith("gguf/")}
    assert alone == {*verify_directory(package).files}


def test_a_model_that_memory_does_not_hold_is_compared_block_by_block(
    contents: PackageContents, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(verification, "free_memory", lambda: 1000)
    monkeypatch.setattr(verification, "load_model", lambda *_: pytest.fail("it was loaded whole"))
    monkeypatch.setattr(verification, "note", told.append)
    verification.verify_hf(package / "hf", contents.model, contents.dense)
    assert "not loaded whole" in told[-1]
    assert "tensor digests, token ids and logits block by block agree" in told[-1]
    wrong = tmp_path / "hf"
    for change, words in (("o_proj", "does not hold the values"), ("", "in the package or")):
        shutil.copytree(package / "hf", wrong, dirs_exist_ok=True)
        tensors = load_file(wrong / "model.safetensors")
        name = f"model.layers.1.self_attn.{change}.weight"
        if change:
            tensors[name] = tensors[name].flip(0).contiguous()
        else:
            config = json.loads((wrong / "config.json").read_text())
            (wrong / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
            tensors = {each: held for each, held in tensors.items() if "layers.2." not in each}
        save_file(tensors, wrong / "model.safetensors", {"format": "pt"})
        with pytest.raises(Refused, match=words):
            verification.verify_hf(wrong, contents.model, contents.dense)


def test_a_package_names_hf_and_each_format_once() -> None:
    for wrong, words in ((["gguf"], "add hf"), (["hf", "gguf", "gguf"], "stands twice")):
        with pytest.raises(ValueError, match=words):
            ExportSettings.model_validate({"formats": tuple(wrong)})


def test_what_a_format_cannot_hold_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(model_of(tmp_path, "qwen3-gqa"))
    layered = settings_of(tmp_path / "qwen3-gqa", allocate={"layout": "per-layer", "ratio": 0.3})
    with pytest.raises(InvalidInput, match=r"blocks differ in width.*--layout uniform"):
        export.check(layered, checkpoint, thorough=False)
    uniform = settings_of(tmp_path / "qwen3-gqa", allocate={"allocation": "uniform", "ratio": 0.3})
    told = export.check(uniform, checkpoint, thorough=False)
    assert told == [("export", "hf, gguf"), ("export", "gguf: f32, architecture qwen3")]


def test_a_plan_that_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    context = Context(LocalStore(tmp_path / "store"))
    chosen, compensation = ExportSettings(formats=BOTH), CompensateSettings()
    blocks = [kept([0], [1]), kept([1, 2], [2, 3])]
    for case, layout, found in (
        ("llama-gqa", "per-layer", "deci"),
        ("llama-gqa", "uniform", "llama"),
        ("qwen3-gqa", "uniform", "qwen3"),
        ("qwen3-gqa", "per-layer", None),
    ):
        place = tmp_path / case
        model = place if place.is_dir() else model_of(tmp_path, case)
        same = blocks if layout == "per-layer" else blocks[:1] * 2
        plan = plan_of(open_checkpoint(model), same, layout)
        resolved = resolve_model(str(model), tmp_path / "downloads")
        if found is None:
            with pytest.raises(InvalidInput, match="--layout uniform"):
                formats.check_plan(context, resolved, plan, chosen, compensation)
        else:
            told = formats.check_plan(context, resolved, plan, chosen, compensation)
            assert told["gguf"] == found
            assert set(told) == {*BOTH}


def test_every_format_says_how_it_is_loaded_from_where_it_lies() -> None:
    for name, each in FORMATS.items():
        place = f"{name}/{each.file}".rstrip("/")
        for layout in ("uniform", "per-layer"):
            assert place in each.how_to_load(place, layout)  # type: ignore[arg-type]
