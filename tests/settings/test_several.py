"""Several models in one configuration: each gets settings of its own, or the request is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.base.errors import InvalidInput
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load, load_each
from bipline.settings.placeholders import model_name


def written(folder: Path, **values: Any) -> Path:
    path = folder / "compress.yaml"
    texts = {"calibration": "a.txt", "held-out": "b.txt"}
    path.write_text(yaml.safe_dump({"texts": texts, **values}), encoding="utf-8")
    return path


def test_each_model_is_a_run_with_a_name_of_its_own(tmp_path: Path) -> None:
    models = ["hf:org/small@main", "models:/served@production", "s3://bucket/large/", "here/tiny"]
    config = written(tmp_path, models=models, promote={"name": "{name}-pruned"}, state="r/{name}")
    runs = load_each(config)
    names = ["small", "served", "large", "tiny"]
    assert [each.model for each in runs] == models
    assert [each.promote.name for each in runs] == [f"{name}-pruned" for name in names]
    assert [each.state for each in runs] == [f"r/{name}" for name in names]
    assert all(each.models == () for each in runs)
    # What is typed stands in place of what is written.
    [alone] = load_each(config, ("seed=7",), ("hf:org/other@0123456",))
    assert (alone.model, alone.promote.name, alone.seed) == (
        "hf:org/other@0123456",
        "other-pruned",
        7,
    )
    assert alone == load_each(
        written(tmp_path, model="hf:org/other@0123456", seed=7, state="r/{name}",
                promote={"name": "{name}-pruned"})
    )[0]  # fmt: skip


def test_one_model_is_what_it_was(tmp_path: Path) -> None:
    config = written(tmp_path, model="here", promote={"name": "a"})
    assert load_each(config) == (load(CompressSettings, config),)


@pytest.mark.parametrize(
    ("source", "name"),
    [("hf:org/name", "name"), ("hf:name@v1", "name"), ("/a/b/", "b"), ("models:/x/3", "x"),
     ("models:/x@y", "x"), ("s3://bucket/a/b", "b"), ("a@b", "a@b")],
)  # fmt: skip
def test_what_a_model_is_called(source: str, name: str) -> None:
    assert model_name(source) == name


@pytest.mark.parametrize(
    ("values", "models", "words"),
    [
        ({"models": ["a", "b"], "promote": {"name": "one"}}, (), "both be registered as 'one'"),
        ({"models": ["x/a", "y/a"], "promote": {"name": "{name}"}}, (), "whose names differ"),
        ({"models": ["a", "a"], "promote": {"name": "{name}"}}, (), "a stands twice"),
        ({"models": ["a"], "model": "a"}, (), "give one of them"),
        ({"models": []}, (), "'model' is required"),
        ({"models": "a"}, (), "give a list of models"),
        ({"models": [5]}, (), "give a list of models"),
        ({}, (), "'model' is required"),
        ({"model": "a: b", "promote": {"name": "{name}"}}, (), "cannot stand for {name}"),
        ({"model": "a"}, ("b", "c"), "both be registered"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path, values: dict[str, Any], models: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        load_each(written(tmp_path, **values), (), models)


def test_a_single_run_takes_no_list(tmp_path: Path) -> None:
    config = written(tmp_path, models=["a", "b"], promote={"name": "{name}"})
    with pytest.raises(InvalidInput, match="one run is of one model"):
        load(CompressSettings, config, ("model=a",))
