"""Audits of what a run registered: from the served bytes to the source; every change is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bipline.audits.audit import Request, audit
from bipline.base.errors import InvalidInput
from bipline.delivery.registries.mlflow_service import tracking_uri
from bipline.delivery.registries.mlflow_source import download_version
from bipline.storage.directory import write_text
from bipline.storage.manifest import list_files, read_manifest
from bipline.values.audit import Audit
from bipline.values.summary import RunSummary
from tests.command import run as command
from tests.pipeline.conftest import Run

NAME = "audited"


@pytest.fixture(scope="module")
def made(run: Run) -> RunSummary:
    """A run without a training, so that it can be replayed."""
    return run(
        recover={}, score={"criterion": "magnitude"}, compensate={"compensation": "none"},
        promote={"name": NAME},
    )  # fmt: skip


@pytest.fixture
def package(made: RunSummary, tmp_path: Path) -> Path:
    """A copy of its package that a test may change."""
    return Path(
        shutil.copytree(Path(made.report).parent, tmp_path / "package", copy_function=_copy)
    )


def _copy(source: str, target: str) -> str:
    shutil.copyfile(source, target)  # not its mode: what a Store holds is not written to
    return target


def about(found: Audit, *status: str) -> set[str]:
    return {each.about for each in found.findings if each.status in status}


def request(package: Path, **more: object) -> Request:
    return Request(str(package), downloads=package.parent / "downloads", **more)  # type: ignore[arg-type]


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


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_every_file_that_is_flipped_is_found(package: Path) -> None:
    for path in sorted(each for each in package.rglob("*") if each.is_file()):
        whole = path.read_bytes()
        flip(path)
        try:
            differences = audit(request(package)).differences
        except InvalidInput as error:  # a manifest that is none any more
            assert path == package / "manifest.json", error
        else:
            assert differences, path
        path.write_bytes(whole)
    assert not audit(request(package)).differences


def rewrite(package: Path) -> None:
    """List the files again, as somebody would who changed one and hides it."""
    manifest = read_manifest(package)
    files = list_files(package)
    write_text(package / "manifest.json", manifest.model_copy(update={"files": files}).to_json())


def test_a_package_that_was_rewritten_consistently_is_never_known(package: Path) -> None:
    (package / "README.md").write_text("# another card\n")
    shutil.rmtree(package / "lineage")
    rewrite(package)
    found = audit(request(package))
    assert "bytes" in about(found, "holds")
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
def served(made: RunSummary, folder: Path, tmp_path: Path) -> Iterator[Callable[[], Audit]]:
    """An audit of the registered version; what a test did to it is undone by copying the state."""
    state = tmp_path / "state"
    shutil.copytree(folder / "state" / "mlflow", state / "mlflow")
    _move(state / "mlflow" / "mlflow.db", folder / "state" / "mlflow", state / "mlflow")
    yield lambda: audit(
        Request(f"models:/{NAME}@candidate", registry=tracking_uri(state),
                downloads=tmp_path / "downloads")
    )  # fmt: skip


def _move(database: Path, before: Path, after: Path) -> None:
    """Artifacts of the copied registry lie beside it."""
    import sqlite3

    with sqlite3.connect(database) as connection:
        tables = {"runs": "artifact_uri", "experiments": "artifact_location",
                  "logged_models": "artifact_location"}  # fmt: skip
        for table, column in tables.items():
            connection.execute(
                f"UPDATE {table} SET {column} = REPLACE({column}, ?, ?)",
                (str(before), str(after)),
            )
    connection.close()


def test_a_registered_version(served: Callable[[], Audit]) -> None:
    found = served()
    assert not found.differences, found.differences
    assert {"registry's copy", "version's tags", "MLflow run"} <= about(found, "holds")
    assert "journal" in about(found, "unknown")  # no gate ever let it through


def test_changes_in_the_registry_are_named(
    served: Callable[[], Audit], made: RunSummary, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client, version = MlflowClient(tracking_uri(tmp_path / "state")), made.registration.version
    client.set_model_version_tag(NAME, version, "plan_digest", "0" * 64)
    assert about(served(), "differs") == {"version's tags"}
    client.set_registered_model_alias(NAME, "production", version)
    assert about(served(), "differs") == {"version's tags", "journal"}
    client.delete_run(
        client.get_model_version(NAME, version).run_id or made.registration.mlflow_run_id
    )
    assert about(served(), "differs") == {"version's tags", "journal", "MLflow run"}
    weights = next((tmp_path / "state" / "mlflow").rglob("hf/model.safetensors"))
    weights.chmod(0o644)
    flip(weights)
    found = served()
    assert "registry's copy" in about(found, "differs") and found.package_digest is None


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
    command(capfd, "audit", "hf:acme/model").assert_one_line(2, "fetch it first")
    command(capfd, "audit", package, "--replay").assert_one_line(2, "give it by --model")
    command(capfd, "audit", package, "--text", "none=x").assert_one_line(2, "read no such text")


def test_the_registry_is_asked_for_bytes_again(served: Callable[[], Audit], tmp_path: Path) -> None:
    """A copy that was fetched before does not stand for what is served now."""
    assert not served().differences
    source = f"models:/{NAME}@candidate"
    place, _ = download_version(source, tmp_path / "downloads", tracking_uri(tmp_path / "state"))
    assert place.is_dir()
    card = next((tmp_path / "state" / "mlflow").rglob("hf/config.json"))
    card.chmod(0o644)
    flip(card)
    assert "registry's copy" in about(served(), "differs")
