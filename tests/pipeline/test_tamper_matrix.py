"""Whatever is changed in package, registry, S3 or a database: an audit finds it and names it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from bipline.audits.audit import audit
from bipline.audits.orchestrated import AskRuns
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.stages.promote import promote_registered
from bipline.storage.manifest import read_manifest
from bipline.values.lineage import RunLineage
from bipline.values.plan import PLAN_NAME, read_plan
from bipline.values.summary import RunSummary
from bipline.values.verdict import Override
from tests.audited import (
    MLFLOW,
    NAME,
    ZENML,
    about,
    copied,
    copied_state,
    edit_json,
    edited,
    file_of_version,
    flip,
    request,
    rewrite,
    said,
    served_request,
)
from tests.hub_stand_in import commit_of, hub_stand_in
from tests.storage.server import running_server

pytestmark = pytest.mark.slow
REFUSING = "limits:\n  - {figure: parameters, at_most: 3}\n"
Edit = tuple[str, tuple[Any, ...]]


@pytest.fixture(scope="module")
def state(audited_run: RunSummary, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the state, in which the version is served as production."""
    place = tmp_path_factory.mktemp("tampered")
    (place / "gate.yaml").write_text(REFUSING)
    state = copied_state(folder / "state", place / "state")
    override = Override(reason="it is needed today", by="Grace")
    address = tracking_uri(state)
    promote_registered(NAME, "production", str(place / "gate.yaml"), override, address)
    return state


@pytest.fixture
def package(audited_run: RunSummary, tmp_path: Path) -> Path:
    """A copy of the package that a test may change."""
    return copied(Path(audited_run.report).parent, tmp_path / "package")


@pytest.fixture(scope="module")
def ask(state: Path) -> AskRuns:
    from bipline.settings.stack import StackSettings
    from pipelines.audits import asking

    return asking(StackSettings(state=str(state)))


def test_a_served_version_as_it_was_left(state: Path, ask: AskRuns) -> None:
    found = audit(served_request(state, runs=ask))
    assert not found.differences, found.differences
    known = about(found, "holds")
    assert {"ZenML run", "ZenML steps", "ZenML artifacts", "ZenML registration"} <= known
    assert {"run's tags", "run's parameters", "run's figures", "model's figures"} <= known
    assert {"verdict", "journal", "run's files", "provenance"} <= known
    assert "refused it, overridden" in said(found, "journal")
    assert "'Grace' was typed" in said(found, "who promoted")
    assert "5 of them as packaged" in said(found, "ZenML artifacts")


OF_RUN = "run_uuid IN (SELECT run_uuid FROM runs WHERE name LIKE 'compress-%')"
OTHER = "0" * 64
IN_MLFLOW: dict[str, tuple[list[Edit], str, str]] = {
    "edited tag of the version": (
        [("UPDATE model_version_tags SET value = ? WHERE key = 'tensor_digest'", (OTHER,))],
        "version's tags", "tensor_digest says 000000000000"),
    "edited digest of the version": (
        [("UPDATE model_version_tags SET value = ? WHERE key = 'package_digest'", (OTHER,))],
        "registry's copy", "not 000000000000"),
    "edited commit of the run": (
        [(f"UPDATE tags SET value = ? WHERE key = 'git.commit' AND {OF_RUN}", ("f" * 40,))],
        "run's tags", "git.commit"),
    "another pipeline run": (
        [(f"UPDATE tags SET value = ? WHERE key = 'zenml.run_id' AND {OF_RUN}", ("x",))],
        "run's tags", "zenml.run_id says x"),
    "edited parameter": (
        [(f"UPDATE params SET value = '0.9' WHERE key = 'allocate.ratio' AND {OF_RUN}", ())],
        "run's parameters", "allocate.ratio 0.9, the package 0.3"),
    "edited figure of the run": (
        [(f"UPDATE {table} SET value = 1 WHERE key LIKE 'pruned/perplexity.%' AND {OF_RUN}", ())
         for table in ("metrics", "latest_metrics")], "run's figures", "the package"),
    "edited figure of the model": (
        [("UPDATE logged_model_metrics SET metric_value = 1 "
          "WHERE metric_name LIKE 'perplexity.%'", ())], "model's figures", "the package"),
    "deleted run": (
        [(f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE {OF_RUN}", ())],
        "MLflow run", "was deleted"),
    "alias moved by hand": (
        [("UPDATE registered_model_aliases SET version = 9 WHERE alias = 'production'", ())],
        "journal", "production points at 9, the journal says"),
    "alias set by hand": (
        [("INSERT INTO registered_model_aliases SELECT 'live', version, name, workspace FROM "
          "registered_model_aliases WHERE alias = 'production'", ())],
        "journal", "live points at version"),
    "edited entry of the journal": (
        [("UPDATE model_version_tags SET value = REPLACE(value, '\"version\": \"', '\"version\": "
          "\"7') WHERE key = 'entry'", ())], "journal", ""),
    "deleted entry of the journal": (
        [("UPDATE model_version_tags SET key = 'x' WHERE key = 'entry'", ())],
        "journal", "is no entry of the journal"),
    "package swapped for another": (
        [("UPDATE logged_models SET artifact_location = artifact_location || '-other'", ())],
        "registry's copy", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_MLFLOW)
def test_what_is_edited_in_mlflows_database_is_named(state: Path, name: str) -> None:
    edits, question, words = IN_MLFLOW[name]
    with edited(state / MLFLOW, *edits):
        found = audit(served_request(state))
    assert question in about(found, "differs"), found.findings
    assert words in said(found, question)


def test_files_of_the_registry_are_named(state: Path) -> None:
    """The package, what lies around it, and what the run keeps beside it."""
    for pattern, question in {
        "models/*/artifacts/package/hf/model.safetensors": "registry's copy",
        "models/*/artifacts/MLmodel": "registry's copy",
        "*/artifacts/pruning_plan.json": "run's files",
        "*/artifacts/verdicts/*.json": "verdict",
    }.items():
        path = file_of_version(state, pattern)
        whole = path.read_bytes()
        path.unlink()  # it may share its bytes with the Store
        path.write_bytes(whole[:-2] + b" \n")
        assert question in about(audit(served_request(state)), "differs"), path
        path.write_bytes(whole)


IN_ZENML: dict[str, tuple[list[Edit], str, str]] = {
    "edited digest of a step": (
        [("UPDATE run_metadata SET value = ? WHERE key = 'output_digest'", (f'"{OTHER}"',))],
        "ZenML steps", "digest 000000000000"),
    "edited key of a stage": (
        [("UPDATE run_metadata SET value = ? WHERE key = 'stage_key'", (f'"{OTHER}"',))],
        "ZenML steps", "key 000000000000"),
    "edited status of a step": (
        [("UPDATE step_run SET status = 'failed' WHERE name = 'prune'", ())],
        "ZenML steps", "prune: status"),
    "edited content hash": (
        [("UPDATE artifact_version SET content_hash = ? WHERE uri LIKE '%/export/package/%'",
          (OTHER,))], "ZenML artifacts", "export.package"),
    "artifact swapped for another of its kind": (
        [("UPDATE artifact_version SET uri = (SELECT uri FROM artifact_version WHERE uri LIKE "
          "'%/evaluate_dense/%' LIMIT 1), content_hash = (SELECT content_hash FROM "
          "artifact_version WHERE uri LIKE '%/evaluate_dense/%' LIMIT 1) WHERE uri LIKE "
          "'%/evaluate_pruned/%'", ())], "ZenML artifacts", "evaluate_pruned.pruned_record is not"),
    "renamed run": (
        [("UPDATE pipeline_run SET name = name || '-x' WHERE name LIKE 'compress-%'", ())],
        "ZenML run", "name: compress-"),
    "deleted run": (
        [("DELETE FROM pipeline_run WHERE name LIKE 'compress-%'", ())],
        "ZenML run", "it was deleted, or is of another stack"),
    "edited registration": (
        [("UPDATE run_metadata SET value = REPLACE(value, '\"mlflow_run_id\": \"', "
          "'\"mlflow_run_id\": \"x') WHERE key = 'registration'", ())],
        "ZenML registration", "MLflow run: x"),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_ZENML)
def test_what_is_edited_in_zenmls_database_is_named(state: Path, ask: AskRuns, name: str) -> None:
    edits, question, words = IN_ZENML[name]
    with edited(state / ZENML, *edits):
        found = audit(served_request(state, runs=ask))
    assert question in about(found, "differs"), found.findings
    assert words in said(found, question)


def test_an_artifact_that_is_rewritten_with_its_hash_is_held_to_the_package(
    state: Path, ask: AskRuns, package: Path
) -> None:
    """The plan's file and its row say the same; the package says another."""
    packaged = read_plan(package / "hf" / PLAN_NAME).digest
    plans = (state / "zenml" / "artifacts" / "allocate" / "plan").rglob("value.json")
    [path] = [each for each in plans if read_plan(each).digest == packaged]
    whole = path.read_text()
    path.write_text(whole.replace("magnitude", "wanda-sp"))
    assert path.read_text() != whole
    digest = read_plan(path).digest
    change = "UPDATE artifact_version SET content_hash = ? WHERE uri LIKE '%/allocate/plan/%'"
    with edited(state / ZENML, (change, (digest,))):
        found = audit(served_request(state, runs=ask))
    path.write_text(whole)
    assert "allocate.plan is not the one that was packaged" in said(found, "ZenML artifacts")


def another_host(package: Path) -> None:
    [run] = (package / "lineage" / "runs").glob("*.json")
    edit_json(run, host="elsewhere")


def another_dependency(package: Path) -> None:
    path = package / "lineage" / "provenance.json"
    path.write_text(path.read_text().replace("calibration", "calibratiom", 1))


def another_run(package: Path) -> None:
    [run] = (package / "lineage" / "runs").glob("*.json")
    told = RunLineage.model_validate_json(run.read_text())
    run.write_text(told.model_copy(update={"run_id": "0" * 32}).to_json())
    run.rename(run.with_name(f"{'0' * 32}.json"))


@pytest.mark.parametrize(
    ("change", "hidden", "question"),
    [
        (another_host, False, "lineage"), (another_dependency, True, "provenance"),
        (another_run, True, "provenance"),
        (lambda package: (package / "extra.bin").write_text("x"), False, "bytes"),
        (lambda package: (package / "README.md").unlink(), False, "bytes"),
        (lambda package: (package / "manifest.json").write_text("{}"), False, "bytes"),
        (lambda package: edit_json(package / "resolution.json", texts={}), True, "lineage"),
    ],
)  # fmt: skip
def test_what_is_changed_in_a_package_is_named(
    package: Path, change: Callable[[Path], object], hidden: bool, question: str
) -> None:
    """``hidden``: the folder that was changed is listed again, as far as nothing signs it."""
    change(package)
    if hidden:
        rewrite(package if question == "lineage" else package / "lineage")
    assert question in about(audit(request(package)), "differs")


@pytest.fixture
def bucket(package: Path) -> Iterator[str]:
    with running_server():
        client = boto3.client("s3")
        client.create_bucket(Bucket="served")
        for path in package.rglob("*"):
            if path.is_file():
                client.upload_file(path, "served", f"a/{path.relative_to(package)}")
        yield "s3://served/a"


def test_a_package_in_s3(bucket: str, package: Path, tmp_path: Path) -> None:
    whole = audit(request(package))
    client, key = boto3.client("s3"), "a/hf/model.safetensors"
    found = audit(of(bucket, tmp_path))
    assert found.package_digest == read_manifest(package).digest
    assert about(found, "holds") == about(whole, "holds") and not found.differences
    assert f"objects of {bucket}" in said(found, "bytes")
    kept = client.get_object(Bucket="served", Key=key)["Body"].read()
    client.put_object(Bucket="served", Key=key, Body=kept[:-1] + bytes([kept[-1] ^ 1]))
    assert "hf/model.safetensors" in said(audit(of(bucket, tmp_path)), "bytes")
    client.delete_object(Bucket="served", Key=key)
    assert "is listed but missing" in said(audit(of(bucket, tmp_path)), "bytes")
    assert not [*(tmp_path / "downloads").iterdir()]


def of(source: str, folder: Path) -> Any:
    return dataclasses.replace(request(folder / "x"), source=source)


def test_a_package_on_the_hub(package: Path, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models" / "acme" / "small"
    shutil.copytree(package, place)
    (place / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    with hub_stand_in(tmp_path / "hub") as endpoint:
        done = audit_on(endpoint, tmp_path)
        assert done.returncode == 0, done
        assert f"commit {commit_of(place)}" in done.stdout
        flip(place / "hf" / "config.json")
        done = audit_on(endpoint, tmp_path)
    assert done.returncode == 1 and "hf/config.json does not match its sha256" in done.stdout


def audit_on(endpoint: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(folder / "hf-home")}  # fmt: skip
    command = [sys.executable, "-m", "bipline", "audit", "hf:acme/small"]
    return subprocess.run(
        command, env=environment, cwd=folder, text=True, capture_output=True, check=False
    )
