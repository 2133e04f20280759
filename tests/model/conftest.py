"""A tiny model on disk, as transformers saves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bipline.compression.prune import prune
from bipline.model.opening import open_checkpoint
from tests.per_layer import LAYERS, mixed_blocks, plan_of
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


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA with biases, to be cut to blocks of different widths."""
    return tiny_model(
        tmp_path_factory.mktemp("dense") / "llama", "llama-gqa-biased", num_hidden_layers=LAYERS
    )


@pytest.fixture(scope="module")
def pruned(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with blocks of different widths, one without attention and one without FFN."""
    checkpoint = open_checkpoint(dense)
    out = tmp_path_factory.mktemp("pruned") / "out"
    prune(checkpoint, plan_of(checkpoint, mixed_blocks(checkpoint.shape)), out)
    return out
