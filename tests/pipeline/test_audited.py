"""Audits of what a run registered: from the served bytes to the source; every change is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bipline.audits.audit import audit
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.delivery.registries.mlflow_source import download_version
from bipline.storage.manifest import read_manifest
from bipline.values.audit import Audit
from bipline.values.summary import RunSummary
from tests.audited import (
    NAME,
    about,
    copied,
    copied_state,
    file_of_version,
    flip,
    request,
    rewrite,
    served_request,
)
from tests.command import run as command

pytestmark = pytest.mark.slow


@pytest.fixture
def package(audited_run: RunSummary, tmp_path: Path) -> Path:
    """A copy of its package that a test may change."""
    return copied(Path(audited_run.report).parent, tmp_path / "package")


def test_an_untouched_package(package: Path, llama: Path, folder: Path, tmp_path: Path) -> None:
    texts = {"calibration": str(folder / "calibration.txt")}
    found = audit(request(package, model=str(llama), texts=texts, replay=True))
    assert not found.differences, found.differences
    assert found.package_digest == read_manifest(package).digest
    known = about(found, "holds")
    assert {"bytes", "origin", "BOM", "lineage", "plan", "settings", "replay"} <= known
    assert {"dense model", "dense model again", "text calibration"} <= known
    assert {"signature", "text held-out", "run"} <= about(found, "unknown")
    assert all(each.consequence for each in found.findings if each.status != "holds")
    assert Audit.model_validate_json(found.to_json()) == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "package"]
    assert not list((tmp_path / "downloads").glob("replay-*"))


def test_every_file_that_is_flipped_is_found(package: Path) -> None:
    for path in sorted(each for each in package.rglob("*") if each.is_file()):
        whole = path.read_bytes()
        flip(path)
        assert audit(request(package)).differences, path
        path.write_bytes(whole)
    assert not audit(request(package)).differences


def test_a_package_that_was_rewritten_consistently_is_never_known(package: Path) -> None:
    (package / "README.md").write_text("# another card\n")
    shutil.rmtree(package / "lineage")
    rewrite(package)
    found = audit(request(package))
    assert not found.differences and "bytes" in about(found, "holds")
    [signature] = [each for each in found.findings if each.about == "signature"]
    assert signature.status == "unknown"
    assert "rewritten everything consistently" in str(signature.consequence)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda p: flip(p / "plan-of-another"), "plan"),
        (lambda p: (p / "lineage" / "runs" / "x.json").write_text("{}"), "lineage"),
    ],
    ids=["plan", "lineage"],
)
def test_what_is_rewritten_in_part_is_named(
    package: Path, change: Callable[[Path], None], where: str
) -> None:
    (package / "plan-of-another").write_text("x")
    if where == "plan":
        plan = json.loads((package / "pruning_plan.json").read_text())
        plan["created_by"] = "somebody"
        (package / "pruning_plan.json").write_text(json.dumps(plan))
    change(package)
    rewrite(package)
    assert where in about(audit(request(package)), "differs")


def test_another_dense_model_and_text_are_named(
    package: Path, reference: Path, folder: Path
) -> None:
    texts = {"calibration": str(folder / "held-out.txt")}
    found = audit(request(package, model=str(reference), texts=texts, replay=True))
    assert {"dense model again", "text calibration", "replay"} <= about(found, "differs")


@pytest.fixture
def served(audited_run: RunSummary, folder: Path, tmp_path: Path) -> Callable[[], Audit]:
    """An audit of the registered version; what a test does to it is done to a copy."""
    state = copied_state(folder / "state", tmp_path / "state", ("mlflow",))
    return lambda: audit(served_request(state))


def test_a_registered_version(served: Callable[[], Audit]) -> None:
    found = served()
    assert not found.differences, found.differences
    assert {"registry's copy", "version's tags", "MLflow run"} <= about(found, "holds")
    assert "journal" in about(found, "unknown")  # no gate ever let it through


def test_changes_in_the_registry_are_named(
    served: Callable[[], Audit], audited_run: RunSummary, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client, version = (
        MlflowClient(tracking_uri(tmp_path / "state")),
        audited_run.registration.version,
    )
    client.set_model_version_tag(NAME, version, "plan_digest", "0" * 64)
    assert about(served(), "differs") == {"version's tags"}
    client.set_registered_model_alias(NAME, "production", version)
    assert about(served(), "differs") == {"version's tags", "journal"}
    client.delete_run(
        client.get_model_version(NAME, version).run_id or audited_run.registration.mlflow_run_id
    )
    assert about(served(), "differs") == {"version's tags", "journal", "MLflow run"}
    weights = file_of_version(tmp_path / "state", "package/hf/model.safetensors")
    weights.chmod(0o644)
    flip(weights)
    found = served()
    assert {"registry's copy", "bytes"} <= about(found, "differs")


def test_the_command(
    package: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(capfd, "audit", package, "--json", tmp_path / "audit.json")
    assert ended.code == 0 and "0 differs" in ended.output
    assert json.loads((tmp_path / "audit.json").read_text())["package_digest"]
    flip(package / "README.md")
    ended = command(capfd, "audit", package)
    ended.assert_one_line(1, "findings differ")
    assert "differs  bytes" in ended.output
    command(capfd, "audit", package / "hf").assert_one_line(2, "not a package")
    command(capfd, "audit", tmp_path).assert_one_line(2, "there is no manifest.json")
    command(capfd, "audit", "hf:acme@").assert_one_line(2, "not a hub source")
    command(capfd, "audit").assert_one_line(2, "give a package to audit, or --all")
    command(capfd, "audit", package, "--replay").assert_one_line(2, "give it by --model")
    command(capfd, "audit", package, "--text", "none=x").assert_one_line(2, "read no such text")


def test_the_registry_is_asked_for_bytes_again(served: Callable[[], Audit], tmp_path: Path) -> None:
    """A copy that was fetched before does not stand for what is served now."""
    assert not served().differences
    source = f"models:/{NAME}@candidate"
    place, _ = download_version(source, tmp_path / "downloads", tracking_uri(tmp_path / "state"))
    assert place.is_dir()
    card = file_of_version(tmp_path / "state", "package/hf/config.json")
    card.chmod(0o644)
    flip(card)
    assert "registry's copy" in about(served(), "differs")
