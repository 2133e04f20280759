"""Fixtures shared by all tests: where real data lies, and tiny models of every family."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.tiny import FAMILY_CASES, tiny_model

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real texts and models, by ``BIPLINE_DATA``; in CI it must be there."""
    path = Path(os.environ.get("BIPLINE_DATA", "/nonexistent"))
    if path.is_dir():
        return path
    message = f"BIPLINE_DATA={path} is not a folder: real texts and models are missing"
    if os.environ.get("CI"):
        pytest.fail(message)
    return pytest.skip(message)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The embedded reference model."""
    return ASSETS / "reference-llm"


@pytest.fixture(scope="session", params=sorted(FAMILY_CASES))
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model directory in float64: one for every family, head layout and bias."""
    return tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaMA with grouped heads."""
    return tiny_model(tmp_path_factory.mktemp("model") / "llama", "llama-gqa")
