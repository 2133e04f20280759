"""Extras: a missing one is one line that names it, and the table is what the project declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bipline.base import extras
from bipline.base.errors import InvalidInput
from bipline.base.extras import EXTRAS, Extra, check, installed, require

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DECLARED = PROJECT["optional-dependencies"]


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> str:
    """An extra of which one library is here and the other is not."""
    monkeypatch.setitem(EXTRAS, "absent", Extra("such a thing", ("json", "no_such_library")))
    return "absent"


# Its library holds others at older versions, so it is no part of `all`.
APART = {"kubeflow"}
# Modules that their distribution calls otherwise.
DISTRIBUTIONS = {"OpenSSL": "pyOpenSSL", "cyclonedx": "cyclonedx-python-lib"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}


def test_the_table_is_what_the_project_declares() -> None:
    assert set(DECLARED) == {*EXTRAS, "all", "dev"}
    for name, extra in EXTRAS.items():
        brought = {DISTRIBUTIONS.get(module, module) for module in extra.modules}
        assert brought == names(DECLARED[name])


def test_all_is_every_extra() -> None:
    (requirement,) = DECLARED["all"]
    named = re.fullmatch(r"bipline\[([a-z0-9,]+)\]", requirement)
    assert named and set(named[1].split(",")) == set(EXTRAS) - APART


def test_no_extra_repeats_the_core() -> None:
    core = names(PROJECT["dependencies"])
    for extra in EXTRAS:
        assert not core & names(DECLARED[extra])


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - APART))
def test_a_test_environment_has_every_extra(extra: str) -> None:
    assert installed(extra)
    check(extra)


def test_a_module_that_is_there_is_the_module(absent: str) -> None:
    import json.decoder

    assert require("json.decoder", absent) is json.decoder


def test_a_missing_library_is_one_line_that_names_it(absent: str) -> None:
    assert not installed(absent)
    for refuse, what in (
        (lambda: require("no_such_library.part", absent), "such a thing"),
        (lambda: check(absent), "such a thing"),
        (lambda: check(absent, "--flag"), "--flag"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            refuse()
        assert str(refusal.value) == (
            f"{what} needs no_such_library, not installed here; run: pip install 'bipline[absent]'"
        )


@pytest.mark.parametrize(
    ("body", "failure"),
    [("import something_else", ModuleNotFoundError), ("1 / 0", ZeroDivisionError)],
)
def test_a_broken_library_is_not_told_as_missing(
    body: str,
    failure: type[Exception],
    absent: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken_library.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(failure):
        extras.require("broken_library", absent)


def test_a_library_that_needs_another_of_the_extra(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needing_library.py").write_text("import no_such_library", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match="needs no_such_library"):
        require("needing_library", absent)
