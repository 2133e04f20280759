"""One compress run of a tiny model, shared by the tests of the pipeline.

Runs go through the real local stack, with all state in a temporary folder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bipline.settings.compress import CompressSettings
from bipline.values.summary import RunSummary
from tests.audited import forget_places

TEXTS = ("calibration", "held-out", "judge")
Run = Callable[..., RunSummary]
WORDS = ["oak", "elm", "ash", "fir", "yew", "pine", "birch", "maple", "cedar", "larch", "alder"]


def write_text(path: Path, seed: int, words: int = 400) -> Path:
    """A text of random words: no two texts share 13 of them in a row."""
    draw = random.Random(seed)
    path.write_text(" ".join(draw.choice(WORDS) for _ in range(words)), encoding="utf-8")
    return path


def configuration(model: Path, folder: Path, **sections: Any) -> CompressSettings:
    """A quick configuration; ``sections`` replace whole sections."""
    recipe = {"rank": 2, "steps": 4, "batch_size": 4, "seqlen": 16, "learning_rate": 0.02}
    values: dict[str, Any] = {
        "model": str(model),
        "texts": {name: str(folder / f"{name}.txt") for name in TEXTS},
        "state": str(folder / "state"),
        "calibrate": {"samples": 8, "seqlen": 16},
        "allocate": {"ratio": 0.3},
        "recover": {
            "enabled": True,
            "text": "calibration",
            "held_out": "judge",
            "recipe": {**recipe, "dropout": 0.0},
        },
        "evaluate": {"protocol": {"seqlen": 16}},
        "promote": {"name": "tiny"},
    }
    return CompressSettings.model_validate({**values, **sections})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and in ``state`` everything the runs write."""
    path = tmp_path_factory.mktemp("pipeline")
    for seed, name in enumerate(TEXTS, start=1):
        write_text(path / f"{name}.txt", seed)
    return path


@contextmanager
def elsewhere(folder: Path) -> Iterator[None]:
    """An empty current directory, with a foreign stack, server and tracking store in the way."""
    place = folder / "elsewhere"
    place.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENML_CONFIG_PATH", str(folder / "foreign"))
        patch.setenv("ZENML_ACTIVE_STACK_ID", "9d5c1f0e-0000-4000-8000-000000000000")
        patch.setenv("ZENML_STORE_URL", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.chdir(place)
        yield


@pytest.fixture(scope="session")
def run(llama: Path, folder: Path) -> Run:
    """Run the pipeline from an empty current directory, with a foreign stack in the way."""
    from pipelines.run import run_compress

    def start(**sections: Any) -> RunSummary:
        with elsewhere(folder):
            return run_compress(configuration(llama, folder, **sections))

    return start


@contextmanager
def inside(folder: Path) -> Iterator[Any]:
    """ZenML's client, pointed at the state that the runs of ``folder`` wrote."""
    from pipelines.local_stack import isolated

    with isolated(folder / "state"):
        from zenml.client import Client

        yield Client()


@pytest.fixture(scope="session")
def first(run: Run) -> RunSummary:
    """The first run, in which nothing is known yet."""
    return run()


@pytest.fixture(scope="module", autouse=True)
def places_of_copies_are_forgotten() -> Iterator[None]:
    """A module that copied a state leaves none of its places to the next one."""
    yield
    forget_places()


@pytest.fixture(scope="session")
def audited_run(run: Run) -> RunSummary:
    """A run without a training, so that it can be replayed."""
    return run(
        recover={}, score={"criterion": "magnitude"}, compensate={"compensation": "none"},
        promote={"name": "audited"},
    )  # fmt: skip


def client_of(folder: Path) -> Any:
    """MLflow's client of the state that the runs of ``folder`` wrote."""
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{folder / 'state' / 'mlflow' / 'mlflow.db'}")


def named(folder: Path, name: str) -> list[Any]:
    """The MLflow runs of one pipeline run."""
    client = client_of(folder)
    [experiment] = [each for each in client.search_experiments() if each.name == "compress"]
    query = f"tags.mlflow.runName = '{name}'"
    found = client.search_runs([experiment.experiment_id], query)
    return [client.get_run(each.info.run_id) for each in found]  # with the models, too
