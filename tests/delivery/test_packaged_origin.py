"""The packaged model's config.json names the base model, and is held to what is packaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bipline.delivery.contents import PackageContents
from bipline.storage.digests import digest_file
from bipline.storage.manifest import read_manifest, verify_directory
from tests.delivery.conftest import altered
from tests.delivery.test_export import change_config, refused_package, with_manifest


def test_the_packages_config_names_the_base_model_too(
    contents: PackageContents, package: Path
) -> None:
    before, after = (
        json.loads((place / "config.json").read_text(encoding="utf-8"))
        for place in (contents.model, package / "hf")
    )
    named = {"base_model": "dense"}
    assert after == {**before, "bipline": {**before["bipline"], **named}}
    assert after["bipline"]["tensor_digest"] == contents.records["pruned"].tensor_digest


def test_an_origin_of_another_model_is_refused(contents: PackageContents, tmp_path: Path) -> None:
    model = Path(shutil.copytree(contents.model, tmp_path / "model"))
    told = json.loads((model / "config.json").read_text(encoding="utf-8"))["bipline"]
    change_config(model, {"bipline": {**told, "plan_digest": "0" * 64}})
    with_manifest(model, read_manifest(contents.model))
    message = refused_package(altered(contents, model=model), tmp_path / "out")
    assert "its config.json names the plan_digest 000000000000" in message


def test_package_files_are_hashed_right(package: Path) -> None:
    for name, entry in read_manifest(package).files.items():
        assert digest_file(package / name) == entry.sha256
        assert (package / name).stat().st_size == entry.size


def test_the_model_lies_in_it_byte_for_byte_but_for_its_config(
    contents: PackageContents, package: Path
) -> None:
    alone, source = verify_directory(package / "hf"), read_manifest(contents.model)
    assert alone.info == source.info and set(alone.files) == set(source.files)
    for name, entry in alone.files.items():
        assert read_manifest(package).files[f"hf/{name}"] == entry
        assert name == "config.json" or source.files[name] == entry
