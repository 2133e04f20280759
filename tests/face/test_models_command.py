"""``bipline models``: what the table says, and what is said of a model_type that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bipline.delivery.formats.gguf.architectures import architectures_for
from bipline.model.families import families
from bipline.model.wrappers import wrappers
from bipline.stages.families import known_families
from tests.command import run
from tests.tiny import CASES


def test_every_family_is_in_the_table_and_tested() -> None:
    rows = {row.model_type: row for row in known_families().families}
    for name in wrappers():  # tests/model/test_wrappers.py runs on each
        assert rows.pop(name).kind.endswith("inside another model")
    assert rows.keys() == families().keys()
    assert {model_type for model_type, _ in CASES.values()} == rows.keys()
    for name, row in rows.items():
        assert ("attention groups" in row.cuts) != families()[name].heads_fixed
        assert ("FFN channels" in row.cuts or "experts" in row.cuts) != families()[name].ffn_fixed
        assert (row.exports["hf"] == (row.architecture,)) != bool(families()[name].read_as)
        run_as = families()[name].read_as or name
        assert row.exports.get("gguf", ()) == architectures_for(run_as, "per-layer" in row.layouts)


def test_the_command_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    done = run(capfd, "models", "--json", "told.json")
    assert done.code == 0
    known = {*families(), *wrappers()}
    for name in known:
        assert name in done.output
    told = json.loads((tmp_path / "told.json").read_text())
    assert [row["model_type"] for row in told["families"]] == sorted(known)
    assert run(capfd, "models", "helium").output.count("helium") == 1


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("iquestcoder", ("tensors of kind 'gated and sequential'", "docs/adding.md")),
        ("stablelm", ("nearest kind is",)),
        ("llava", ("holds a 'llama'", "LlamaForCausalLM")),
        ("mpt", ("nearest kind is",)),
        ("clip", ("transformers builds no language model",)),
        ("no\nsuch", ("'no\\nsuch' is not supported",)),
    ],
)
def test_an_unknown_one_is_told_the_nearest_kind(
    model_type: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run(capfd, "models", model_type).assert_one_line(2, *words)
