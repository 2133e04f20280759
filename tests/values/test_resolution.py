"""Resolutions: old ones stay as they were, and a model is what it holds, wherever it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.storage.digests import digest_json
from bipline.values.resolution import Resolution, read_resolution

FILES = {"config.json": "cd" * 32, "model.safetensors": "ef" * 32, "tokenizer.json": "01" * 32}
MODEL: dict[str, Any] = {
    "source": "hf:org/name@main",
    "revision": "0123",
    "location": "/models/name",
    "tensor_digest": "ab" * 32,
    "files": FILES,
    "tokenizer_digest": "23" * 32,
    "licence": "apache-2.0",
}  # fmt: skip
TEXT = {
    "source": "a.txt", "revision": None, "location": "/a.txt", "sha256": "45" * 32, "documents": 3
}  # fmt: skip
# A file and its digest as they were before there was a layout digest.
OLD: dict[str, Any] = {"schema_version": 1, "model": MODEL, "texts": {"eval": TEXT}, "tasks": {}}
OLD_DIGEST = "c1df7d22d8f6410ee47e2e7005ac10991c024c27a9dceea9310a52ea49f4d451"
LAYOUT = {"tensor_digest": None, "layout_digest": "67" * 32}


def resolution(**changes: Any) -> Resolution:
    return Resolution.model_validate({**OLD, "model": {**MODEL, **changes}})


def test_an_old_resolution_keeps_its_text_and_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "resolution.json"
    text = json.dumps(OLD, indent=1, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")
    read = read_resolution(path)
    assert read.to_json() == text
    assert read.digest == OLD_DIGEST
    assert read.model.layout_digest is None


def test_a_resolution_that_knows_only_the_layout_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "resolution.json"
    path.write_text(resolution(**LAYOUT).to_json(), encoding="utf-8")
    assert read_resolution(path) == resolution(**LAYOUT)
    assert read_resolution(path).digest != OLD_DIGEST


def test_a_model_that_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resolution.json"
    model = {**MODEL, "tensor_digest": None}
    path.write_text(json.dumps({**OLD, "model": model}), encoding="utf-8")
    with pytest.raises(InvalidInput, match="one of tensor_digest and layout_digest is needed"):
        read_resolution(path)


def test_the_identity_is_that_of_config_and_tensors() -> None:
    wanted = digest_json({"config": "cd" * 32, "tensors": "ab" * 32})
    assert resolution().model.identity == wanted
    assert resolution(layout_digest="67" * 32).model.identity == wanted
    assert resolution(**LAYOUT).model.identity == "layout " + "67" * 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "/models/name"),
        ("revision", None),
        ("location", "s3://bucket/name"),
        ("licence", None),
        ("tokenizer_digest", "89" * 32),
        ("files", {"config.json": "cd" * 32, "model-00001-of-00002.safetensors": "ef" * 32}),
    ],
)
def test_the_identity_is_the_same_wherever_the_model_lies(field: str, value: Any) -> None:
    assert resolution(**{field: value}).model.identity == resolution().model.identity


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tensor_digest", "89" * 32),
        ("files", {**FILES, "config.json": "89" * 32}),
    ],
)
def test_other_weights_or_another_config_are_another_model(field: str, value: Any) -> None:
    assert resolution(**{field: value}).model.identity != resolution().model.identity
