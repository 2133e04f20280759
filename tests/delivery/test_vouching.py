"""Lineage, provenance, BOM and origin: valid by others' definitions, and held by verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementFields

from bipline.base.errors import InvalidInput, Refused
from bipline.delivery.contents import PackageContents
from bipline.delivery.lineage import add_to_lineage, record_run
from bipline.delivery.signature import is_signed, sign
from bipline.delivery.vouching import verify
from bipline.storage.digests import digest_file
from bipline.storage.manifest import (
    LINEAGE,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    FileEntry,
    read_manifest,
)
from bipline.values.lineage import RunLineage, StageLineage
from tests.command import run as run_command
from tests.delivery.conftest import altered, write
from tests.delivery.test_tampering import add_beside, cut, flip, make_key, rename

Keys = tuple[Path, Path]
Tampering = Callable[[Path], object]
TAMPERINGS: tuple[Tampering, ...] = (flip, cut, rename, add_beside, Path.unlink)
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def run_of(name: str) -> RunLineage:
    return RunLineage(
        run_name=name,
        run_id=f"id-of-{name}",
        host="a-host",
        started=STARTED,
        ended=STARTED + timedelta(minutes=3),
        code={"git.commit": "c" * 40},
        stages={"prune": StageLineage(status="completed", key="k" * 64, digest="d" * 64)},
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_key(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(package, tmp_path_factory.mktemp("shared") / "package")
    shutil.rmtree(copy / LINEAGE, ignore_errors=True)
    return copy


@pytest.fixture(scope="module")
def whole(package: Path, tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    """A package with the lineage of one run, both signed."""
    copy = shutil.copytree(package, tmp_path_factory.mktemp("whole") / "package")
    record_run(copy, {"model": "/a/place/dense"}, run_of("first"))
    sign(copy, keys[0])
    return copy


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copied")


def rewritten(directory: Path, name: str, change: Callable[[Path], object]) -> None:
    """A file changed, and the manifest beside it made to follow: nothing in it can tell."""
    change(directory / name)
    manifest, path = read_manifest(directory), directory / name
    entry = FileEntry(size=path.stat().st_size, sha256=digest_file(path))
    followed = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    (directory / MANIFEST_NAME).write_text(followed.to_json())


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change a JSON file in place."""

    def edit(path: Path) -> None:
        value = json.loads(path.read_text(encoding="utf-8"))
        change(value)
        path.write_text(json.dumps(value), encoding="utf-8")

    return edit


def refused(package: Path, key: Path | None = None) -> str:
    with pytest.raises((Refused, InvalidInput)) as caught:
        verify(package, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lineage_changes_no_digest_and_is_told(package: Path, whole: Path, keys: Keys) -> None:
    assert read_manifest(whole) == read_manifest(package)
    assert is_signed(whole) and is_signed(whole / LINEAGE)
    told = " ".join(verify(whole, keys[1]).told)
    assert f"lineage: 2 files, all as listed, of this package; signed by {keys[1]}" in told
    assert "CycloneDX 1.6, valid" in told and "SLSA provenance v1, valid" in told
    assert "made from dense" in told
    assert "signed, by whom only --key PUB tells" in " ".join(verify(whole).told)
    without = " ".join(verify(package).told)
    assert "no lineage" in without and "SLSA" not in without


def test_the_command_tells_each(
    copied: Path, keys: Keys, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_command(capfd, "verify", copied, "--key", keys[1])
    assert done.code == 0
    for told in ("bom.json: CycloneDX", "lineage: 2 files", "lineage/provenance.json: in-toto"):
        assert told in done.output
    flip(copied / LINEAGE / "provenance.json")
    assert run_command(capfd, "verify", copied).code == 1


def test_what_is_done_to_a_lineage_is_found_and_named(whole: Path, tmp_path: Path) -> None:
    for name in read_manifest(whole / LINEAGE).files:
        for number, tamper in enumerate(TAMPERINGS):
            copy = shutil.copytree(whole, tmp_path / f"{number}-{name.replace('/', '-')}")
            tamper(copy / LINEAGE / name)
            # Where nothing is left in a folder, the folder is named.
            assert name.split("/")[0] in refused(copy)


def test_a_lineage_written_anew_is_found_by_the_key(copied: Path, keys: Keys) -> None:
    name = "runs/id-of-first.json"
    rewritten(copied / LINEAGE, name, edited(lambda run: run.update(host="another")))
    verify(copied)
    assert f"{SIGNATURE_NAME} is of another {MANIFEST_NAME}" in refused(copied, keys[1])
    (copied / LINEAGE / SIGNATURE_NAME).unlink()
    assert "lineage: is not signed" in refused(copied, keys[1])


def test_the_lineage_of_another_package_is_refused(
    contents: PackageContents, whole: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write(altered(contents, config={"another": "configuration"}), other)
    shutil.copytree(whole / LINEAGE, other / LINEAGE)
    assert "is the lineage of package" in refused(other)


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


def a_link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")


def another_kind(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    manifest = read_manifest(folder).model_copy(update={"kind": "package"})
    path.write_text(manifest.to_json())


@pytest.mark.parametrize("tamper", [no_manifest, a_link, another_kind])
def test_a_folder_that_is_no_lineage_is_refused(tamper: Tampering, copied: Path) -> None:
    tamper(copied / LINEAGE)
    assert "lineage" in refused(copied)


def test_a_later_run_is_added_and_takes_the_signature_away(copied: Path, keys: Keys) -> None:
    first = (copied / LINEAGE / "provenance.json").read_bytes()
    (copied / LINEAGE / ".left.partial").write_text("by a run that was killed")
    record_run(copied, {}, run_of("second"))
    names = {"provenance.json", "runs/id-of-first.json", "runs/id-of-second.json"}
    assert set(read_manifest(copied / LINEAGE).files) == names
    assert (copied / LINEAGE / "provenance.json").read_bytes() == first
    verify(copied)
    assert "is not signed" in refused(copied, keys[1])
    sign(copied, keys[0])
    verify(copied, keys[1])


def test_a_package_that_differs_is_given_no_signature(copied: Path, keys: Keys) -> None:
    add_to_lineage(copied, {"note.txt": "one"})
    flip(copied / LINEAGE / "note.txt")
    with pytest.raises(Refused, match=r"note\.txt"):
        sign(copied, keys[0])
    assert not is_signed(copied / LINEAGE)


def test_the_provenance_is_one_by_in_totos_own_definitions(
    contents: PackageContents, whole: Path
) -> None:
    value = json.loads((whole / LINEAGE / "provenance.json").read_text())
    Statement.copy_from_pb(ParseDict(value, StatementFields())).validate()
    predicate = ParseDict(value["predicate"], Provenance())
    subject = {each["name"]: each["digest"]["sha256"] for each in value["subject"]}
    assert subject[MANIFEST_NAME] == digest_file(whole / MANIFEST_NAME)
    assert subject["tensors"] == contents.records["pruned"].tensor_digest
    dependencies = predicate.build_definition.resolved_dependencies
    found = {each.name: each.digest["sha256"] for each in dependencies}
    model, texts = contents.resolution.model, contents.resolution.texts
    assert found == {
        "model/tensors": model.tensor_digest,
        **{f"model/{name}": digest for name, digest in model.files.items()},
        **{f"text/{name}": text.sha256 for name, text in texts.items()},
    }
    assert predicate.run_details.metadata.started_on.ToJsonString() == "2026-01-02T03:04:05Z"
    assert value["predicate"]["buildDefinition"]["externalParameters"] == {
        "configuration": {"model": "dense"}
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value["subject"][1]["digest"].update(sha256="0" * 64), "another package"),
        (lambda value: value.update(more=1), "not an in-toto statement"),
        (lambda value: value["predicate"].update(more=1), "not an in-toto statement"),
        (lambda value: value.update(predicateType="https://example.org"), "no in-toto statement"),
        (lambda value: value["predicate"]["runDetails"].pop("builder"), "lacks what SLSA requires"),
        (lambda value: value.pop("subject"), "not an in-toto statement"),
    ],
)
def test_a_provenance_that_is_none_or_anothers_is_refused(
    change: Callable[[dict[str, Any]], object], reason: str, copied: Path
) -> None:
    rewritten(copied / LINEAGE, "provenance.json", edited(change))
    assert reason in refused(copied)


def test_the_bom_fits_its_schema_and_is_read_by_its_library(
    contents: PackageContents, package: Path
) -> None:
    text = (package / "bom.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    value = json.loads(text)
    subject = value["metadata"]["component"]
    card = subject.pop("modelCard")  # which the library does not know
    read: Any = Bom  # its reader is made by a decorator
    component = read.from_json(value).metadata.component
    assert component and component.type.value == "machine-learning-model"
    (hash_,) = component.hashes
    assert hash_.content == contents.records["pruned"].tensor_digest
    (base,) = component.pedigree.ancestors
    assert next(iter(base.hashes)).content == contents.resolution.model.tensor_digest
    listed = {each["name"]: each["hashes"][0]["content"] for each in subject["components"]}
    for name, entry in read_manifest(package).files.items():
        assert not name.startswith("hf/") or listed[name] == entry.sha256
    assert {each["bom-ref"] for each in value["components"]} == {
        each["ref"] for each in card["modelParameters"]["datasets"]
    }
    (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert float(metric["value"]) == contents.records["pruned"].perplexity["held-out"].value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.update(more=1), "not a CycloneDX 1.6 BOM"),
        (lambda value: value["metadata"]["component"]["modelCard"].update(more=1), "not a Cyclone"),
        (lambda value: value["metadata"]["component"].pop("hashes"), "about another model"),
        (lambda value: value["metadata"].clear(), "about another model"),
    ],
)
def test_a_bom_that_is_none_or_anothers_is_refused(
    change: Callable[[dict[str, Any]], object], reason: str, package: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(package, tmp_path / "copy")
    rewritten(copy, "bom.json", edited(change))
    assert reason in refused(copy)


def swap(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def test_metadata_in_the_weights_is_held_to_the_config(
    contents: PackageContents, package: Path, tmp_path: Path
) -> None:
    """Also where every digest was made to follow."""
    plan = contents.plan.digest.encode()
    copy = shutil.copytree(package / "hf", tmp_path / "copy")
    rewritten(copy, "model.safetensors", lambda path: swap(path, plan, b"0" * 64))
    assert "model.safetensors and config.json tell another plan_digest each" in refused(copy)
    rewritten(copy, "config.json", lambda path: swap(path, plan, b"0" * 64))
    assert "names another plan than pruning_plan.json" in refused(copy)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("tensor_digest", "names other tensors than the manifest"),
        ("base_tensor_digest", "names another base model than pruning_plan.json"),
    ],
)
def test_claims_of_the_config_are_held_to_plan_and_manifest(
    package: Path, tmp_path: Path, field: str, said: str
) -> None:
    copy, lie = shutil.copytree(package, tmp_path / "copy"), "0" * 64
    told = json.loads((copy / "hf" / "config.json").read_text())["bipline"][field].encode()
    rewritten(copy, "hf/config.json", edited(lambda value: value["bipline"].update({field: lie})))
    if told in (copy / "hf" / "model.safetensors").read_bytes():
        rewritten(copy, "hf/model.safetensors", lambda path: swap(path, told, lie.encode()))
    assert said in refused(copy)


def test_a_lineage_inside_the_lineage_is_refused(copied: Path, keys: Keys) -> None:
    (copied / LINEAGE / LINEAGE).mkdir()
    (copied / LINEAGE / LINEAGE / "more.py").write_text("print()")
    assert "holds a lineage of its own" in refused(copied)
    assert "holds a lineage of its own" in refused(copied, keys[1])
    with pytest.raises(Refused, match="of its own"):
        add_to_lineage(copied, {"runs/x.json": "{}"})


def test_a_section_that_is_none_of_ours_is_named(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package / "hf", tmp_path / "copy")
    rewritten(copy, "config.json", edited(lambda value: value["bipline"].update(more=1)))
    assert "config.json: not a section bipline: more" in refused(copy)


def unnamed(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes().replace(b'"bipline.', b'"another.'))


def test_a_package_of_before_verifies(package: Path, tmp_path: Path) -> None:
    """Without BOM, lineage and origin."""
    copy = shutil.copytree(package, tmp_path / "copy")
    rewritten(copy, "hf/config.json", edited(lambda value: value.pop("bipline")))
    assert "the weights tell an origin, and config.json tells none" in refused(copy)
    rewritten(copy, "hf/model.safetensors", unnamed)
    manifest = read_manifest(copy)
    files = {name: each for name, each in manifest.files.items() if name != "bom.json"}
    (copy / "bom.json").unlink()
    (copy / MANIFEST_NAME).write_text(manifest.model_copy(update={"files": files}).to_json())
    told = verify(copy).told
    assert told[:2] == ("config.json tells no origin", "no bom.json")
