"""The pages of docs/methods are what the methods say of themselves, and lack nobody."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from bipline.compression.allocation import ALLOCATIONS
from bipline.compression.criteria import CRITERIA
from bipline.compression.descriptions import all_descriptions, description_from
from bipline.settings.line import AllocateSettings, ScoreSettings

ROOT = Path(__file__).parents[1]


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_methods", ROOT / "docs/build_methods.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_pages_are_what_the_script_writes() -> None:
    written = builder().pages()
    committed = {path.name: path.read_text("utf-8") for path in (ROOT / "docs/methods").iterdir()}
    assert committed.keys() == written.keys()
    for name, text in written.items():
        assert committed[name] == text, f"run docs/build_methods.py: {name} is out of date"


def test_every_method_is_described_and_in_the_help() -> None:
    criteria, allocations = all_descriptions()
    assert [each.name for each in criteria] == sorted(CRITERIA)
    assert [each.name for each in allocations] == sorted(ALLOCATIONS)
    for known, settings, field in (
        (CRITERIA, ScoreSettings, "criterion"),
        (ALLOCATIONS, AllocateSettings, "allocation"),
    ):
        text = settings.model_fields[field].description or ""
        words = re.split("[,;:(.]", text)
        assert set(known) <= {word.strip() for word in words}


def test_every_method_owns_up_to_its_source() -> None:
    for each in [*all_descriptions()[0], *all_descriptions()[1]]:
        text = " ".join(part.text for part in each.status).lower() + each.idea.lower()
        words = ("established", "reconstruction", "ours", "this project", "none; every paper")
        assert any(word in text for word in words), each.name


@pytest.mark.parametrize(
    "docstring",
    [
        None,
        "``other``: idea.\n\ns =  x\n\nSource: a",
        "``this``: idea.\n\nSource: a",
        "``this``: idea.\n\ns =   x",
    ],
)
def test_a_description_without_formula_or_source_is_refused(docstring: str | None) -> None:
    with pytest.raises(ValueError, match="this: its description"):
        description_from("this", docstring)
