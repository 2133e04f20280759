"""Resolve from disk: digests that follow the content alone, refusals in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.model.resolve import resolve_model, resolve_task, resolve_text
from bipline.settings.compress import CompressSettings, EvaluateSettings
from bipline.settings.line import CalibrateSettings
from bipline.stages import resolve as stage
from bipline.values.resolution import (
    Resolution,
    read_resolution,
)
from tests.model.refusals import refusal

SPECIAL_FILES = {"tokenizer.json", "model.safetensors", "config.json", "chat_template.jinja"}


def resolve(
    model: str, texts: dict[str, str], tasks: dict[str, str], downloads: Path
) -> Resolution:
    settings = CompressSettings(
        model=model, texts=texts, tasks=tasks,
        calibrate=CalibrateSettings.model_construct(texts={}),
        evaluate=EvaluateSettings(texts=()),
    )  # fmt: skip
    return stage.resolve(settings, downloads)


def test_a_moved_directory_keeps_the_digest(model: Path, tmp_path: Path) -> None:
    before = resolve(str(model), {}, {}, tmp_path)
    moved = model.rename(tmp_path / "elsewhere")
    after = resolve(str(moved), {}, {}, tmp_path)
    assert before.model.location != after.model.location
    assert before.digest == after.digest


@pytest.mark.parametrize("name", sorted(SPECIAL_FILES))
def test_one_changed_byte_behind_the_same_name_is_seen(
    name: str, model: Path, tmp_path: Path
) -> None:
    before = resolve(str(model), {}, {}, tmp_path)
    path = model / name
    data = bytearray(path.read_bytes())
    # The last byte of the weights is a weight; a space behind JSON or a template is harmless.
    data = data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".safetensors") else data + b" "
    path.write_bytes(data)
    after = resolve(str(model), {}, {}, tmp_path)
    assert before.digest != after.digest
    tokenizer = name in ("tokenizer.json", "chat_template.jinja")
    assert (before.model.tokenizer_digest != after.model.tokenizer_digest) == tokenizer
    weights = name == "model.safetensors"
    assert (before.model.tensor_digest != after.model.tensor_digest) == weights


def test_files_in_subfolders_and_caches_are_not_part_of_the_model(
    model: Path, tmp_path: Path
) -> None:
    before = resolve_model(str(model), tmp_path)
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / ".cache" / "huggingface" / "tokenizer.json.metadata").write_text("a time")
    (model / "notes.md").write_text("a thought")
    assert resolve_model(str(model), tmp_path) == before
    assert set(before.files) >= SPECIAL_FILES


def test_links_are_followed_as_the_hub_cache_is_made_of_them(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "cache/snapshots/abc", tmp_path / "cache/blobs"
    shutil.copytree(model, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    files = [resolve_model(str(place), tmp_path).files for place in (model, snapshot)]
    assert files[0] == files[1]


def test_the_licence_file_speaks_before_the_front_matter(model: Path, tmp_path: Path) -> None:
    assert resolve_model(str(model), tmp_path).licence == "apache-2.0"
    (model / "LICENSE.txt").write_text("\n  Tiny Community License\n\nterms\n")
    assert resolve_model(str(model), tmp_path).licence == "Tiny Community License"


@pytest.mark.parametrize("readme", ["# no front matter", "---\n: [\n---\n", "---\n- a\n---\n"])
def test_no_declared_licence_is_none(readme: str, model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text(readme)
    assert resolve_model(str(model), tmp_path).licence is None


def test_a_model_without_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(InvalidInput, resolve_model, str(model), tmp_path)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    line = refusal(InvalidInput, resolve_model, str(tmp_path / "absent"), tmp_path)
    assert "absent" in line


def test_places_that_are_not_served_say_what_to_give(tmp_path: Path) -> None:
    source = "gs://bucket/model"
    line = refusal(InvalidInput, resolve_model, source, tmp_path)
    expected = "not served by this version; give a directory, hf:org/name@revision, "
    assert line == f"{source}: {expected}s3://bucket/prefix or models:/name@alias"


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:../up", "hf:acme/tiny@", "hf:a/b?x=1"])
def test_what_is_not_a_hub_model_is_refused_without_asking(source: str, tmp_path: Path) -> None:
    assert "hf:org/name@revision" in refusal(InvalidInput, resolve_model, source, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", "one document\n", 1),
        ("b.txt", "one\n<|endoftext|>\ntwo\n", 2),
        ("c.jsonl", '{"text": "one"}\n{"text": " "}\n{"text": "three"}\n', 2),
    ],
)
def test_texts_on_disk_are_read_as_documents(
    name: str, content: str, documents: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    resolved = resolve_text(str(path), tmp_path)
    assert (resolved.documents, resolved.location) == (documents, str(path))


@pytest.mark.parametrize("name", ["absent.txt", "table.parquet", "s3://bucket/a.txt"])
def test_texts_that_cannot_be_read_are_refused(name: str, tmp_path: Path) -> None:
    assert name.rsplit("/")[-1] in refusal(InvalidInput, resolve_text, name, tmp_path)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("spilt=test", "did you mean 'split'?"),
        ("document=3", "did you mean 'documents'?"),
        ("documents=0", "positive"),
        ("documents=ten", "positive"),
        ("split=", "no value"),
        ("data_files=../../secret.txt", "inside the repository"),
        ("data_files=http://elsewhere/a.json", "inside the repository"),
    ],
)
def test_queries_are_checked_before_anything_is_asked(
    query: str, said: str, tmp_path: Path
) -> None:
    assert said in refusal(InvalidInput, resolve_text, f"hf:acme/c4?{query}", tmp_path)


ROWS = [
    {"query": "the sky is", "choices": ["blue", "loud"], "gold": 0},
    {"options": ["Anna", "Berta"], "continuation": "was late.", "gold": 1},
]


@pytest.mark.parametrize("row", ROWS)
def test_tasks_of_both_kinds_are_counted(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}")
    assert resolve_task(str(path)).rows == 2


@pytest.mark.parametrize("source", ["absent.jsonl", "hf:acme/task", "s3://bucket/task.jsonl"])
def test_tasks_from_elsewhere_are_refused(source: str) -> None:
    assert source in refusal(InvalidInput, resolve_task, source)


def test_a_resolution_is_the_same_after_writing_and_reading(model: Path, tmp_path: Path) -> None:
    text, task = tmp_path / "a.txt", tmp_path / "task.jsonl"
    text.write_text("one document")
    task.write_text(json.dumps(ROWS[0]))
    resolution = resolve(str(model), {"a": str(text)}, {"cloze": str(task)}, tmp_path)
    path = tmp_path / "resolution.json"
    path.write_text(resolution.to_json())
    assert read_resolution(path) == resolution
    assert read_resolution(path).digest == resolution.digest
    path.write_text(resolution.to_json().replace('"schema_version": 1', '"schema_version": 2'))
    assert "schema_version" in refusal(InvalidInput, read_resolution, path)
    refusal(InvalidInput, read_resolution, tmp_path / "absent.json")


def test_a_changed_text_changes_the_digest(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    digests = set()
    for content in ("one document", "One document"):
        text.write_text(content)
        digests.add(resolve(str(model), {"a": str(text)}, {}, tmp_path).digest)
    assert len(digests) == 2
