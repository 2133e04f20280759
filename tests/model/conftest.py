"""A tiny model on disk, as transformers saves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA with what else a hub repository holds: a chat template and a card."""
    directory = tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama-gqa")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n")
    return directory


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test writes the safetensors file that it reads."""
    return tmp_path_factory.mktemp("header") / "model.safetensors"
