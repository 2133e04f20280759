"""Fixtures shared by all tests: where real data lies, and tiny models of every family."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.mlflow_tracked import mlflow_environment
from tests.tiny import FAMILY_CASES, tiny_model

ASSETS = Path(__file__).parents[1] / "assets"
# Modules that take minutes, the longest first: begun last, one would keep all workers waiting.
LONGEST = (
    "test_kubeflow_run", "test_readme", "test_killed_prune", "test_compress", "test_wheel",
    "test_combinations", "test_own_stack", "test_sweep", "test_registries", "test_recipes",
    "test_reproduced", "test_real_runs", "test_registry_faults", "test_tamper_matrix",
    "test_fuzz", "test_gguf_engine", "test_thresholds", "test_audited",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest modules; the others stay in their order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


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


@pytest.fixture(scope="module", autouse=True)
def nobody_points_mlflow_elsewhere() -> Iterator[None]:
    """No module leaves MLflow pointed at a server of its own: the next one would follow."""
    before = mlflow_environment()
    yield
    assert mlflow_environment() == before


@pytest.fixture(scope="session")
def reference() -> Path:
    """The embedded reference model."""
    return ASSETS / "reference-llm"


@pytest.fixture(scope="session")
def load_as_users_do(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Load a model by transformers alone, with its own code: ``(directory, dtype) -> model``.

    transformers copies the code before it runs it: here, to a folder of the tests.
    """
    from transformers import AutoModelForCausalLM

    def load(directory: Path, dtype: torch.dtype = torch.float64) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, dtype=dtype
        ).eval()

    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield load


@pytest.fixture(scope="session", params=sorted(FAMILY_CASES))
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model directory in float64: one for every family, head layout and bias."""
    return tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaMA with grouped heads."""
    return tiny_model(tmp_path_factory.mktemp("model") / "llama", "llama-gqa")
