"""Protocols by name: in the ready files, changed by flags, in a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bipline.base.errors import InvalidInput
from bipline.face.keywords import measurement
from bipline.quality.evaluate import windows_of
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load
from bipline.settings.named_protocol import READY, load_protocol
from bipline.settings.protocol import Protocol

CONFIGURATION: dict[str, Any] = {
    "model": "m", "texts": {"calibration": "c.txt"},
    "calibrate": {"texts": {"calibration": 1.0}}, "evaluate": {"protocol": "quick"},
}  # fmt: skip


def settings(tmp_path: Path, **changed: Any) -> CompressSettings:
    path = tmp_path / "compress.yaml"
    path.write_text(yaml.safe_dump({**CONFIGURATION, **changed}))
    return load(CompressSettings, path)


@pytest.mark.parametrize("name", READY)
def test_the_ready_ones(name: str) -> None:
    found = load_protocol(name)
    assert found.name == name and found.version >= 1
    assert found.texts and found.task_sources
    assert set(found.join) <= set(found.texts)
    told = Protocol(**found.settings({})).described({}, {})
    assert (told["name"], told["version"]) == (name, found.version)
    assert name == "quick" or told["seqlen"] == int(name.rpartition("-")[2])


def test_quick_is_measured_from_files_that_come_with_bipline() -> None:
    found = load_protocol("quick")
    for source in (*found.texts.values(), *found.task_sources.values()):
        assert Path(source).is_file()


def test_a_flag_changes_the_name_and_the_digest() -> None:
    own = measurement("quick", None, "", None, {})
    same = measurement("quick", None, "", None, {"seqlen": 128})
    changed = measurement("quick", None, "", None, {"seqlen": 64})
    assert own == same and own.protocol.name == "quick"
    assert changed.protocol.name == "quick (changed)" and changed.protocol.seqlen == 64
    assert own.protocol.described({}, {}) != changed.protocol.described({}, {})


def test_what_is_given_stands_in_place_of_its_own(tmp_path: Path) -> None:
    found = measurement("standard-2048", {"wikitext2": "w.txt"}, "piqa", tmp_path, {})
    assert found.texts["wikitext2"] == "w.txt" and found.texts["c4"].startswith("hf:")
    assert list(found.tasks) == ["piqa"] and str(tmp_path) in found.tasks["piqa"]
    assert measurement(None, None, "", None, {}).protocol == Protocol()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file; ready protocols: quick"),
        ("name: x\n", "version: field required"),
        ("name: x\nversion: 0\n", "greater than or equal to 1"),
        ("name: x\nversion: 1\nprotocol: {seqlen: one}\n", "protocol.seqlen"),
        ("name: x\nversion: 1\nstride: 5\n", "stride: extra inputs"),
        ("a: [", "protocol "),
        ("- 1\n", "protocol "),
    ],
)
def test_a_file_that_is_none(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=words):
        load_protocol(str(path))


def test_a_configuration_names_it(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found.evaluate.texts == ("held-out", "prose") and found.evaluate.tasks == ("cloze",)
    assert found.evaluate.protocol.name == "quick"
    assert set(found.texts) == {"calibration", "held-out", "prose"}
    again = CompressSettings.model_validate_json(found.model_dump_json())
    assert again == found


def test_a_configuration_changes_it(tmp_path: Path) -> None:
    evaluate = {"texts": ["prose"], "protocol": {"name": "quick", "seqlen": 32}}
    found = settings(tmp_path, evaluate=evaluate).evaluate
    assert found.texts == ("prose",) and found.protocol.seqlen == 32
    assert found.protocol.name == "quick (changed)"
    with pytest.raises(InvalidInput, match="protocol 'nope'"):
        settings(tmp_path, evaluate={"protocol": "nope"})


def test_a_join_is_of_its_text_alone(tmp_path: Path, llama: Path) -> None:
    from bipline.model.tokenizer import load_tokenizer

    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one two three"}\n{"text": "four five six seven eight"}\n')
    tokenizer, protocol = load_tokenizer(llama), Protocol(seqlen=4, join={"spaced": " "})
    spaced, plain = (windows_of(tokenizer, protocol, name, path) for name in ("spaced", "plain"))
    assert not spaced.equal(plain)
    (tmp_path / "s.txt").write_text("one two three four five six seven eight")
    assert windows_of(tokenizer, protocol, "plain", tmp_path / "s.txt").equal(spaced)
