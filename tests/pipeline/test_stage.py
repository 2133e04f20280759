"""What the steps share, apart from a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bipline.base.errors import Refused
from bipline.model.resolve import resolve_model
from bipline.values.resolution import Resolution


def test_model_that_changes_after_it_was_resolved_is_refused(llama: Path, tmp_path: Path) -> None:
    from steps.stage import dense_checkpoint

    model = Path(shutil.copytree(llama, tmp_path / "model"))
    resolved = Resolution(model=resolve_model(str(model), tmp_path))
    assert dense_checkpoint(resolved).directory == model
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, model / "model.safetensors")
    with pytest.raises(Refused, match="changed while the run"):
        _ = dense_checkpoint(resolved).tensor_digest
