"""Every copy of a model says where it came from; a commit changes files, never tensors or keys."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import bipline
from bipline.base import code
from bipline.base.errors import InvalidInput
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model
from bipline.storage.handle import Handle
from bipline.storage.manifest import read_manifest
from bipline.values.origin import SECTION, ModelOrigin, origin_in
from bipline.values.plan import read_plan

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture(scope="module")
def pruned(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same prune by two commits, in several shards."""
    folder = tmp_path_factory.mktemp("pruned")
    for commit in COMMITS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bipline.values.origin.commit", lambda told=commit: told)
            prune(llama, folder / commit, shard_size=30_000)
    return {commit: folder / commit for commit in COMMITS}


def prune(model: Path, out: Path, **settings: Any) -> Path:
    bipline.prune(
        model, out, state=out.with_name("state"), **{"ratio": 0.3, "criterion": "magnitude",
        "compensation": "none", **settings},
    )  # fmt: skip
    return out


def section(model: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((model / "config.json").read_text())[SECTION]
    return told


def headers(model: Path) -> Iterator[dict[str, str]]:
    for shard in sorted(model.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            yield file.metadata()


def test_config_and_every_shard_say_where_they_came_from(
    llama: Path, pruned: dict[str, Path]
) -> None:
    for commit, model in pruned.items():
        told = {
            "base_tensor_digest": open_checkpoint(llama).tensor_digest,
            "plan_digest": read_plan(model / "pruning_plan.json").digest,
            "version": bipline.__version__,
            "git_commit": commit,
        }
        own = {"schema_version": 1, "tensor_digest": open_checkpoint(model).tensor_digest}
        assert section(model) == {**told, **own}
        assert read_manifest(model).info["tensor_digest"] == own["tensor_digest"]
        found = list(headers(model))
        assert len(found) > 1
        expected = {"format": "pt", **{f"bipline.{name}": each for name, each in told.items()}}
        assert all(header == expected for header in found)


def test_a_commit_changes_files_and_neither_tensors_nor_keys(pruned: dict[str, Path]) -> None:
    one, other = (Handle.to_directory(model) for model in pruned.values())
    assert one.digest != other.digest
    assert one.content == other.content != one.digest
    first, second = (resolve_model(str(model), model) for model in pruned.values())
    assert first.tensor_digest == second.tensor_digest
    assert first.files["config.json"] != second.files["config.json"]
    assert first.identity == second.identity


def test_what_is_measured_decides_content(
    llama: Path, pruned: dict[str, Path], tmp_path: Path
) -> None:
    known = Handle.to_directory(pruned[COMMITS[0]]).content
    for name, settings in {
        "whole": {},
        "other": {"shard_size": 30_000, "criterion": "random"},
    }.items():
        out = prune(llama, tmp_path / name, **settings)
        assert Handle.to_directory(out).content != known


def test_a_directory_of_before_is_keyed_by_its_digest(llama: Path) -> None:
    handle = Handle(kind="model", location="", digest="d" * 64, info={"parameters": 1})
    assert handle.content == handle.digest
    model = resolve_model(str(llama), llama)
    assert model.config_digest is None and "config_digest" not in model.model_dump()


def test_pruned_again_it_names_the_model_it_was_pruned_from(
    pruned: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = pruned[COMMITS[0]]
    again = prune(source, tmp_path / "again")
    assert "no such key is known" not in "".join(capfd.readouterr())
    assert section(again)["base_tensor_digest"] == section(source)["tensor_digest"]
    assert section(again)["plan_digest"] != section(source)["plan_digest"]


def test_transformers_loads_it_and_keeps_the_section(
    pruned: dict[str, Path], load_as_users_do: Callable[..., Any]
) -> None:
    model = pruned[COMMITS[0]]
    assert load_as_users_do(model).config.to_dict()[SECTION] == section(model)


@pytest.mark.parametrize("told", [7, {"version": 1}, {"base_tensor_digest": "x", "more": ""}])
def test_a_section_that_is_none_of_ours_is_one_line(told: Any) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json: not a section bipline") as caught:
        origin_in({SECTION: told}, "config.json")
    assert "\n" not in str(caught.value)
    assert origin_in({}, "config.json") is None


def test_the_commit_is_that_of_our_own_checkout(tmp_path: Path) -> None:
    def run(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    run("init")
    (tmp_path / "file").write_text("one")
    run("add", "file")
    run("commit", "-m", "one")
    (tmp_path / "venv").mkdir()
    assert code.commit(tmp_path / "venv") is None
    clean = code.commit(tmp_path)
    assert clean == code.git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    code.commit.cache_clear()
    assert code.commit(tmp_path) == f"{clean}-dirty"


def test_nothing_of_the_machine_is_in_it() -> None:
    told = ModelOrigin.of_base("d" * 64).section()[SECTION]
    assert set(told) <= {"schema_version", "base_tensor_digest", "version", "git_commit"}
