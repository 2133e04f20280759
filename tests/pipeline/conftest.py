"""One compress run of a tiny model, shared by the tests of the pipeline.

Runs go through the real local stack, with all state in a temporary folder.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bipline.settings.compress import CompressConfig
from bipline.values.summary import RunSummary

Run = Callable[..., RunSummary]
WORDS = ["oak", "elm", "ash", "fir", "yew", "pine", "birch", "maple", "cedar", "larch", "alder"]


def write_text(path: Path, seed: int) -> Path:
    """A text of random words: no two texts share 13 of them in a row."""
    draw = random.Random(seed)
    path.write_text(" ".join(draw.choice(WORDS) for _ in range(400)), encoding="utf-8")
    return path


def configuration(model: Path, folder: Path, **sections: dict[str, Any]) -> CompressConfig:
    """A quick configuration; ``sections`` replace whole sections."""
    recipe = {"rank": 2, "steps": 4, "batch_size": 4, "seqlen": 16, "learning_rate": 0.02}
    values: dict[str, Any] = {
        "model": str(model),
        "texts": {name: str(folder / f"{name}.txt") for name in ("calibration", "held-out")},
        "state": str(folder / "state"),
        "calibrate": {"samples": 8, "seqlen": 16},
        "allocate": {"ratio": 0.3},
        "recover": {"enabled": True, "text": "calibration", "recipe": {**recipe, "dropout": 0.0}},
        "evaluate": {"protocol": {"seqlen": 16}},
        "promote": {"name": "tiny"},
    }
    return CompressConfig.model_validate({**values, **sections})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and in ``state`` everything the runs write."""
    path = tmp_path_factory.mktemp("pipeline")
    write_text(path / "calibration.txt", seed=1)
    write_text(path / "held-out.txt", seed=2)
    return path


@pytest.fixture(scope="session")
def run(llama: Path, folder: Path) -> Run:
    """Run the pipeline from an empty current directory, with a foreign stack in the way."""
    from pipelines.run import run_compress

    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()

    def start(reuse: bool = True, **sections: dict[str, Any]) -> RunSummary:
        os.environ["ZENML_CONFIG_PATH"] = str(folder / "foreign")
        os.environ["ZENML_ACTIVE_STACK_ID"] = "9d5c1f0e-0000-4000-8000-000000000000"
        os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
        before = Path.cwd()
        os.chdir(elsewhere)
        try:
            return run_compress(configuration(llama, folder, **sections), reuse=reuse)
        finally:
            os.chdir(before)

    return start


@pytest.fixture(scope="session")
def first(run: Run) -> RunSummary:
    """The first run, in which nothing is known yet."""
    return run()
