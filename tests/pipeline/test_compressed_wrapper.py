"""A decoder beside a vision tower, from a folder to a registered package that users load whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

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
    source = tiny_wrapped(tmp_path / "model", "gemma3", torch.float32)
    sections = {
        "allocate": {"ratio": 0.3}, "compensate": {"compensation": "obs"}, "recover": {},
        "promote": {"name": "wrapped", "alias": "production", "gate": "lenient"},
    }  # fmt: skip
    with elsewhere(folder):
        summary = run_compress(configuration(source, folder, **sections))
    assert summary.status == "completed" and summary.registration.alias == "production"
    package = Path(summary.package.location)
    assert verify_directory(package).digest == summary.package.digest
    assert "copied unchanged" in (package / "README.md").read_text("utf-8")
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
