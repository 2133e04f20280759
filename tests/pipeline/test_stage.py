"""What every stage of a run shares, apart from a pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bipline.base.errors import Refused
from bipline.model.resolve import resolve_model
from bipline.stages.stage import Context
from bipline.storage.local_store import LocalStore


def test_model_that_changes_after_it_was_resolved_is_refused(llama: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    resolved = resolve_model(str(model), tmp_path)
    assert _context(tmp_path).opened(resolved).directory == model
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, model / "model.safetensors")
    with pytest.raises(Refused, match="changed while the run"):
        _ = _context(tmp_path).opened(resolved).tensor_digest


def _context(folder: Path) -> Context:
    return Context(LocalStore(folder / "store"))
