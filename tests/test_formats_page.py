"""``docs/formats.md`` is held to the code: fields, versions, and how digests are recomputed."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import bipline.values
from bipline.compression import statistics
from bipline.delivery import export
from bipline.face.api import prune
from bipline.storage.handle import Handle
from bipline.storage.manifest import FileEntry, Manifest, read_manifest
from bipline.values.plan import read_plan
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
# Values inside the program: no file holds one.
INTERNAL = {"Frozen", "Method", "Outcome", "Tracked"}


def values() -> dict[str, type[BaseModel]]:
    """Every typed value that files may hold, by its class's name."""
    found: dict[str, type[BaseModel]] = {}
    for module in pkgutil.iter_modules(bipline.values.__path__):
        members = vars(importlib.import_module(f"bipline.values.{module.name}"))
        for name, each in members.items():
            own = isinstance(each, type) and issubclass(each, BaseModel) and each is not BaseModel
            if own and not name.startswith("_") and name not in INTERNAL:
                found[name] = each
    return {**found, "Handle": Handle, "FileEntry": FileEntry, "Manifest": Manifest}


def fields(name: str) -> dict[str, str]:
    """What the page's table says of each field of a value or file."""
    head = rf"^`{re.escape(name)}`:\n\n\| field \| what it is \|\n\|---\|---\|\n((?:\|.*\n)+)"
    table = re.search(head, PAGE, re.MULTILINE)
    assert table, f"the page has no table of {name}"
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|$", table[1], re.MULTILINE))


def versions() -> dict[str, tuple[int, set[int]]]:
    """The page's last table: what is written and what is read."""
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+) \| ([\d, ]+) \|", PAGE, re.MULTILINE)
    return {name: (int(now), set(map(int, read.split(",")))) for name, now, read in rows}


@pytest.mark.parametrize("name", sorted(values()))
def test_every_field_is_on_the_page_and_no_other(name: str) -> None:
    assert set(fields(name)) == set(values()[name].model_fields)


def test_every_version_is_on_the_page() -> None:
    told = versions()
    for name, each in values().items():
        field = each.model_fields.get("schema_version")
        if field is None:
            assert name not in told
            continue
        now, read = told.pop(name)
        assert now == field.default == int(fields(name)["schema_version"])
        assert read == set(get_args(field.annotation) or (1,))
    for name, now in (
        ("statistics.json", statistics.SCHEMA_VERSION),
        ("evaluation.json", export.SCHEMA_VERSION),
    ):
        assert told.pop(name)[0] == now == int(fields(name)["schema_version"])
    assert not told


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pruned model and its statistics."""
    folder = tmp_path_factory.mktemp("formats")
    model = tiny_model(folder / "model", "llama-gqa")
    text = folder / "text.txt"
    text.write_text("It rained. Nobody minded, for it had been a dry year.\n" * 40)
    chosen: dict[str, Any] = {"criterion": "wanda-sp", "samples": 64, "seqlen": 16}
    prune(
        model, folder / "out", calibration=text, ratio=0.2, compensation="least-squares",
        statistics=str(folder / "statistics"), corrections=str(folder / "corrections"),
        state=folder / "state", **chosen,
    )  # fmt: skip
    return folder


def test_digests_are_recomputed_by_the_pages_own_lines(place: Path) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    own: dict[str, Any] = {}
    exec(compile(block, "docs/formats.md", "exec"), own)
    for name in ("out", "statistics", "corrections"):
        assert own["manifest_digest"](place / name) == read_manifest(place / name).digest
    plan = read_plan(place / "out" / "pruning_plan.json")
    assert own["plan_digest"](place / "out") == plan.digest
    files = read_manifest(place / "corrections").files
    blocks = {name: e.sha256 for name, e in files.items() if name.startswith("block-")}
    assert plan.compensated is not None
    assert own["sha256"](own["canonical"](blocks)) == plan.compensated.corrections
    about = json.loads((place / "statistics" / "statistics.json").read_text("utf-8"))
    assert own["listing"](about["tensors"]) == plan.tensor_digest
    (place / "out" / "config.json").write_bytes(b"{}")
    with pytest.raises(AssertionError, match="not the one that is listed"):
        own["manifest_digest"](place / "out")


def test_statistics_and_evaluation_have_their_fields(place: Path) -> None:
    about = json.loads((place / "statistics" / "statistics.json").read_text("utf-8"))
    assert set(fields("statistics.json")) == set(about)
    source = (ROOT / "bipline" / "delivery" / "export.py").read_text("utf-8")
    written = re.search(r"def _evaluation.*?return \{(.*?)\n    \}", source, re.DOTALL)
    assert written
    named = set(re.findall(r'^        (?:\*\*\(\{)?"(\w+)":', written[1], re.MULTILINE))
    assert set(fields("evaluation.json")) == named
