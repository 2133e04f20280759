"""A decoder beside a vision tower, from a folder to a registered package that users load whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from bipline.delivery.vouching import verify as verify_package
from bipline.model.opening import open_checkpoint
from bipline.storage.manifest import verify_directory
from pipelines.run import run_compress
from tests.pipeline.conftest import configuration, elsewhere
from tests.tiny import token_windows
from tests.wrapped import tiny_wrapped


@pytest.mark.slow
@torch.no_grad()
def test_a_model_with_a_vision_tower_becomes_a_registered_package(
    folder: Path, tmp_path: Path
) -> None:
    published = {"query_pre_attn_scalar": 4, "attn_logit_softcapping": None}
    source = tiny_wrapped(tmp_path / "model", "gemma3", torch.float32, **published)
    sections = {
        "allocate": {"ratio": 0.3}, "compensate": {"compensation": "obs"},
        "export": {"formats": ("hf", "gguf", "onnx")},
        "promote": {"name": "wrapped", "alias": "production", "gate": "lenient"},
    }  # fmt: skip
    with elsewhere(folder), torch.enable_grad():
        summary = run_compress(configuration(source, folder, **sections))
    assert summary.status == "completed" and summary.registration.alias == "production"
    package = Path(summary.package.location)
    assert verify_directory(package).digest == summary.package.digest
    card = (package / "README.md").read_text("utf-8")
    assert "copied unchanged" in card
    assert card.count("the decoder of a gemma3 alone: the 34 other tensors") == 2
    config = json.loads((package / "onnx" / "config.json").read_text())
    assert config["model_type"] == "gemma3_text"
    assert verify_package(package).manifest.digest == summary.package.digest
    loaded = AutoModelForImageTextToText.from_pretrained(package / "hf", dtype=torch.float32)
    assert type(loaded).__name__ == "Gemma3ForConditionalGeneration"
    dense = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    pictures = torch.rand(1, 3, 28, 28)
    features = [each.eval().get_image_features(pictures).pooler_output for each in (dense, loaded)]
    assert torch.equal(*features)
    assert loaded.config.text_config.intermediate_size < 40
    ids, image = token_windows(1, 12), torch.full((1, 4), 95)
    both = torch.cat([ids[:, :4].clamp(max=90), image, ids[:, 4:].clamp(max=90)], 1)
    assert loaded(input_ids=both, pixel_values=pictures).logits.isfinite().all()
    assert open_checkpoint(package / "hf").nesting is not None
