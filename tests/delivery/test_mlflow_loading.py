"""Registered versions as MLflow's users load and serve them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml

import bipline
from bipline.base.errors import InvalidInput, Refused
from bipline.delivery.registries import mlflow_loader
from bipline.delivery.registries.mlflow import track_and_register
from bipline.delivery.registries.mlflow_flavors import PROMPT
from bipline.delivery.registries.mlflow_run import RunContent
from bipline.delivery.registries.mlflow_service import prepare_tracking
from bipline.model.loading import load_model
from bipline.model.tokenizer import load_tokenizer
from bipline.storage.manifest import read_manifest, verify_directory
from bipline.values.summary import Registration
from tests.delivery.test_per_layer_package import mixed, mixed_package  # noqa: F401
from tests.delivery.worlds import make_package
from tests.mlflow_tracked import tracked_at

PROMPTS = ["The 3rd cat sat", "The 7th"]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A registry of its own, which MLflow is pointed at."""
    place = tmp_path_factory.mktemp("loading")
    with tracked_at(prepare_tracking(place, "loading"), "loading"):
        yield place


def register(package: Path, name: str) -> Registration:
    return track_and_register(
        package=package, package_digest=read_manifest(package).digest, name=name,
        alias="candidate", content=RunContent(version_tags={"plan_digest": "p"}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def uniform(state: Path, package: Path) -> Path:
    """Where the files of a registered version with the stock class lie."""
    register(package, "uniform")
    return stored(state, package)


@pytest.fixture(scope="module")
def per_layer(state: Path, request: pytest.FixtureRequest) -> Path:
    """Where the files of a registered per-layer version lie."""
    package: Path = request.getfixturevalue("mixed_package")
    register(package, "per-layer")
    return stored(state, package)


def stored(state: Path, package: Path) -> Path:
    digest = read_manifest(package).digest
    [found] = [
        path.parent.parent
        for path in (state / "mlflow" / "artifacts").rglob("package/manifest.json")
        if read_manifest(path.parent).digest == digest
    ]
    return found


def continued(hf: Path, tokens: int) -> list[str]:
    """The oracle: transformers' own greedy decoding, text by text, without MLflow's own strip."""
    model, tokenizer, texts = load_model(hf, torch.float32), load_tokenizer(hf), []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        texts.append(tokenizer.decode(made[0], skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("name", ["uniform", "per_layer"])
def test_pyfunc_continues_texts_as_the_package_does(
    request: pytest.FixtureRequest, name: str
) -> None:
    place: Path = request.getfixturevalue(name)
    loaded = mlflow.pyfunc.load_model(f"models:/{name.replace('_', '-')}@candidate")
    made = loaded.predict(PROMPTS, params={"max_new_tokens": 5})
    assert [text.strip() for text in made] == continued(place / "package" / "hf", 5)
    assert isinstance(loaded.predict(loaded.input_example)[0], str)
    told = loaded.metadata
    assert told.metadata["package_digest"] == read_manifest(place / "package").digest
    assert [each.name for each in told.get_params_schema().params] == [
        "max_new_tokens", "do_sample", "temperature",
    ]  # fmt: skip


def test_the_transformers_flavor_has_the_packages_logits(uniform: Path) -> None:
    pipeline = mlflow.transformers.load_model("models:/uniform/1")
    ids = pipeline.tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        found = pipeline.model(**ids).logits
        assert torch.equal(found, load_model(uniform / "package/hf", torch.float32)(**ids).logits)


def test_weights_are_stored_once_and_the_package_stays_verifiable(
    uniform: Path, package: Path
) -> None:
    mlflow.pyfunc.load_model("models:/uniform@candidate")
    assert (uniform / "registered_model_meta").is_file(), "MLflow leaves it; it must not matter"
    assert verify_directory(uniform / "package").digest == read_manifest(package).digest
    assert len(list(uniform.rglob("*.safetensors"))) == 1
    assert register(package, "uniform").reused


def test_a_version_without_code_asks_for_none(uniform: Path, per_layer: Path) -> None:
    flavors = [
        yaml.safe_load((place / "MLmodel").read_text())["flavors"] for place in (uniform, per_layer)
    ]
    assert set(flavors[0]) == {"python_function", "transformers"}
    # MLflow's transformers flavor would run the code beside the weights.
    assert set(flavors[1]) == {"python_function"}
    pinned = [(place / "requirements.txt").read_text() for place in (uniform, per_layer)]
    assert "transformers==" in pinned[0] and "bipline" not in pinned[0]
    assert "bipline==" in pinned[1]


def test_a_loader_that_was_put_there_is_found(uniform: Path, package: Path) -> None:
    path = uniform / "MLmodel"
    whole = path.read_text()
    try:
        path.write_text(whole.replace("loader_module: mlflow.transformers", "loader_module: evil"))
        with pytest.raises(Refused, match="MLmodel, or a file beside it, is not the one"):
            register(package, "uniform")
    finally:
        path.write_text(whole)
    assert register(package, "uniform").reused


def test_what_this_bipline_cannot_load_names_the_gguf(
    per_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any) -> None:
        raise InvalidInput("an unknown family")

    monkeypatch.setattr(mlflow_loader, "load_model", unknown)
    with pytest.raises(Refused, match=r"an unknown family.*--format gguf") as refused:
        mlflow_loader._load_pyfunc(str(per_layer / "package" / "hf"))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform", "per_layer"])
def test_a_served_version_answers_over_http(request: pytest.FixtureRequest, name: str) -> None:
    place: Path = request.getfixturevalue(name)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port",
        str(port), "--model-uri", f"models:/{name.replace('_', '-')}@candidate", "--workers", "1",
    ]  # fmt: skip
    environment = {
        **os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        # MLflow starts its web server by name.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        body = {"inputs": PROMPTS, "params": {"max_new_tokens": 5}}
        assert answer(server, port, body) == continued(place / "package" / "hf", 5)
        assert answer(server, port, json.loads((place / "serving_input_example.json").read_text()))[
            0
        ].startswith(PROMPT)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def answer(server: subprocess.Popen[bytes], port: int, body: dict[str, Any]) -> list[str]:
    """What the server predicts, asked until it is up."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    while server.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                predictions: list[str] = json.loads(reply.read())["predictions"]
                return [text.strip() for text in predictions]
        except ConnectionError:
            pass
        except urllib.error.URLError as error:
            assert isinstance(error.reason, ConnectionError), error
        time.sleep(1)
    raise AssertionError("the server ended")


def test_packages_in_a_registry_are_compared_where_they_lie(tmp_path: Path, state: Path) -> None:
    one, other = (make_package(tmp_path, number) for number in ("1", "2"))
    for package in (one, other):
        register(package, "compared")
    address = f"sqlite:///{state / 'mlflow' / 'mlflow.db'}"
    found = bipline.diff("models:/compared/1", "models:/compared/2", registry=address)
    assert found == bipline.diff(one, other)
