"""A model is the same wherever it lies: directory, S3, hub and registry give one result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

import bipline
from bipline.base.errors import BiplineError, InvalidInput
from bipline.stages.line import check
from tests.hub_stand_in import hub_stand_in
from tests.pipeline.conftest import write_text
from tests.stages.drivers import LINE, Request
from tests.storage.server import Server, running_server

BUCKET = "places"
MODEL = f"s3://{BUCKET}/tiny/llama"
WAY = ("uniform", "bias")


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with running_server() as server:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture
def local(llama: Path, tmp_path: Path, s3: Server) -> Request:
    """The request on a directory, with the same model uploaded."""
    for seed, name in enumerate(("calibration", "held-out"), start=1):
        write_text(tmp_path / f"{name}.txt", seed)
    for path in llama.iterdir():
        boto3.client("s3").upload_file(str(path), BUCKET, f"tiny/llama/{path.name}")
    return Request(str(llama), tmp_path, *WAY)


def elsewhere(request: Request, model: str) -> Request:
    return Request(model, request.folder, *WAY)


@pytest.mark.slow
def test_prune_finds_what_the_same_model_made_elsewhere(local: Request) -> None:
    store = local.folder / "store"
    made = local.pruned("local", store)
    found = elsewhere(local, MODEL).pruned("remote", store)
    assert (found.made, found.line, found.passes) == ([], made.line, 0)
    alone = elsewhere(local, MODEL).pruned("alone")
    assert alone.digests["prune"] == made.digests["prune"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compress_goes_through_from_s3_and_finds_what_prune_made(local: Request) -> None:
    """Speed needs the whole model here, and the export compares with it: it is fetched once."""
    made = local.pruned("local", local.store)
    protocol = {"protocol": {"seqlen": 16, "speed": True, "speed_repeats": 1}}
    found = elsewhere(local, MODEL).compressed(evaluate=protocol)
    assert found.line == made.line
    assert not set(found.made) & set(LINE)
    assert {"evaluate", "export"} <= set(found.made)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_compress_registered_is_a_model_again(
    local: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = bipline.compress(local.settings())
    tracking = f"sqlite:///{local.folder / 'state' / 'mlflow' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    again = elsewhere(local, "models:/tiny@candidate").pruned("again")
    by_hand = elsewhere(local, f"{summary.package.location}/hf").pruned("by-hand")
    assert again.digests["prune"] == by_hand.digests["prune"]


@pytest.mark.slow
def test_a_model_of_the_hub_makes_the_same_model(local: Request) -> None:
    made = local.pruned("local")
    hub = local.folder / "hub"
    shutil.copytree(local.model, hub / "models" / "acme" / "tiny")
    with hub_stand_in(hub) as endpoint:
        command = elsewhere(local, "hf:acme/tiny").command("hub-out", local.folder / "hub-store")
        environment = {
            **os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(local.folder / "hf-home"),
        }  # fmt: skip
        result = local.folder / "hub.json"
        done = subprocess.run(
            [sys.executable, "-m", "bipline", *command, "--json", str(result)], env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(result.read_text())["digest"] == made.digests["prune"]


@pytest.mark.slow
def test_a_store_in_s3_is_found_again_from_elsewhere(local: Request) -> None:
    store = f"s3://{BUCKET}/store"
    made = local.pruned("first", store)
    shutil.rmtree(local.folder / "state")  # the local copies
    found = local.pruned("second", store)
    assert (found.made, found.passes) == ([], 0)
    first, second = (local.folder / name for name in ("first", "second"))
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }
    assert found.line == made.line


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("s3://no-such-bucket/model", "no-such-bucket"),
        (f"s3://{BUCKET}/no/such/prefix", "no such model directory"),
        ("models:/never-registered@champion", "never-registered"),
        ("gs://bucket/model", "gs://bucket/model"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_before_anything_starts(
    local: Request, model: str, words: str
) -> None:
    settings = elsewhere(local, model).settings()
    with pytest.raises(BiplineError) as refusal:
        check(settings, thorough=True)
    assert words in str(refusal.value)
    assert isinstance(refusal.value, InvalidInput)
    assert not (local.folder / "state").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "changes",
    [
        {"compute": {"processes": 2}, "calibrate": {"samples": 32, "seqlen": 16}},
        {"score": {"criterion": "llm-bip-glu", "parts": 1}, "calibrate": {"seqlen": 16}},
        {"compute": {"max_memory": "4GB", "micro_batch": 2}},
    ],
    ids=["processes", "samples-null", "memory"],
)
def test_compress_takes_what_prune_takes(local: Request, changes: dict[str, Any]) -> None:
    if "calibrate" in changes:
        write_text(local.folder / "calibration.txt", 3, words=20_000)
    run = local.compressed(**changes)
    assert set(run.made) >= {"calibrate", "score", "allocate", "prune", "export"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compress_applies_a_plan_corrections_and_statistics(local: Request) -> None:
    folder = local.folder
    bipline.prune(
        local.model, folder / "out", calibration=local.text("calibration"), ratio=0.3, samples=8,
        seqlen=16, criterion="llm-bip-glu", compensation="bias",
        statistics=str(folder / "statistics"), corrections=str(folder / "corrections"),
        state=folder / "state",
    )  # fmt: skip
    digest = bipline.verify(folder / "out").digest
    applied = local.compressed(
        allocate={"plan": str(folder / "out" / "pruning_plan.json")},
        compensate={"corrections": str(folder / "corrections")},
    )
    assert applied.digests["prune"] == digest
    assert not {"calibrate", "score", "allocate", "compensate"} & set(applied.keys)
    reused = local.compressed(
        score={"criterion": "llm-bip-glu", "statistics": str(folder / "statistics")}
    )
    assert reused.passes == 0
    # ZenML itself knows the model that the same plan and corrections make.
    assert reused.digests.get("prune", digest) == digest
