"""Configurations: what two readers of YAML would read differently is one line, with its place."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load
from bipline.settings.yaml_reading import LARGEST_TEXT, read_yaml
from tests.command import run

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
REFUSED = [
    ("a: 1\na: 2", "line 2", "'a' stands twice"),
    ("s:\n  ratio: 0.2\n  other: 1\n  ratio: 0.7", "line 4", "'ratio' stands twice"),
    ('"a": 1\na: 2', "line 2", "'a' stands twice"),
    ("b: &b {r: 1}\nc: {<<: *b, <<: *b}", "line 2", "stands twice"),
    ("l:\n- {a: 1, a: 1}", "line 2", "stands twice"),
    ("a: 010", "line 1", "'010' has two readings"),
    ("a: -010", "line 1", "two readings"),
    ("a: 010.5", "line 1", "two readings"),
    ("a: 1:30", "line 1", "'1:30' has two readings"),
    ("a: 190:20:30.15", "line 1", "two readings"),
    ("a: 1_000", "line 1", "two readings"),
    ("a: 0x1F", "line 1", "two readings"),
    ("a: 0b11", "line 1", "two readings"),
    ("a: on", "line 1", "'on' has two readings"),
    ("a: No", "line 1", "two readings"),
    ("a: TRUE", "line 1", "two readings"),
    ("a: .inf", "line 1", "two readings"),
    ("a: .NaN", "line 1", "two readings"),
    ("a: 1e999", "line 1", "no finite number"),
    (f"a: {'9' * 5000}", "line 1", "a number of 5,000 digits"),
    (f"a: -{'9' * 5000}.5", "line 1", "digits"),
    ("on: 1", "line 1", "the key 'on' is no text"),
    ("1: 2", "line 1", "the key '1' is no text"),
    ("~: 2", "line 1", "is no text"),
    ("? [1, 2]\n: 3", "line 1", "of several values is no text"),
    ("a: &x [*x]", "line 1", "an alias that holds itself"),
    ("a: &x {b: *x}", "line 1", "an alias that holds itself"),
    (BOMB, "line", "more than 100,000 values"),
    ("[" * 5000, "", "nested too deeply"),
    ("a: " + "{b: " * 5000, "", "nested too deeply"),
    ("a: !!python/object/apply:os.system [x]", "line 1", "the tag"),
    ("a: !secret x", "line 1", "the tag '!secret'"),
    ("a: !!binary aGk=", "line 1", "the tag"),
    ("a: !!set {x}", "line 1", "the tag"),
    ('a: "\\ud800"', "line 1", "no name or path can have"),
    ('"x\\0y": 1', "line 1", "no name or path can have"),
    ('a: "x\\0y"', "line 1", "no name or path can have"),
    ("a: \x07", "", "not YAML"),
    ("--- 1\n--- 2", "line 1", "not YAML"),
    ("a: *nowhere", "line 1", "not YAML"),
    ("a: 'x", "line 1", "not YAML"),
    ("x" * (LARGEST_TEXT + 1), "", "characters; at most"),
]


@pytest.mark.parametrize(("text", "place", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_meant_is_refused(text: str, place: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_yaml(text)
    assert place in str(refusal.value)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1e5", {"a": 1e5}),
        ("a: -.5", {"a": -0.5}),
        ("a: 2.", {"a": 2.0}),
        ("a: '010'", {"a": "010"}),
        ("a: !!str 5", {"a": "5"}),
        ("a: '5'", {"a": "5"}),
        ("a: 2026-01-02", {"a": "2026-01-02"}),
        ("a: ~\nb: null\nc:", {"a": None, "b": None, "c": None}),
        ("a: True\nb: false", {"a": True, "b": False}),
        ("a: 'on'", {"a": "on"}),
        ("0E0: 1", {"0E0": 1}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("b: &b {r: 1, s: 2}\nc: {<<: *b, r: 3}", {"b": {"r": 1, "s": 2}, "c": {"r": 3, "s": 2}}),
    ],
)
def test_what_is_meant_is_read(text: str, value: Any) -> None:
    assert read_yaml(text) == value


LETTERS = st.characters(codec="ascii", min_codepoint=32)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(
        # A number to every reader but YAML 1.1, and so to ours.
        lambda text: not re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", text)
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(codec="ascii", min_codepoint=32)), inner, max_size=4
        )
    ),
    max_leaves=20,
)


def _beyond_two_bytes(value: Any) -> bool:
    """Whether JSON would write a pair of surrogates, which is no character to YAML."""
    return any(
        ord(letter) > 0xFFFF for letter in str(value) + json.dumps(value, ensure_ascii=False)
    )


@given(plain)
def test_what_is_written_as_yaml_is_read_again(value: Any) -> None:
    """An oracle: PyYAML's own writer, and JSON, which is YAML too."""
    assert read_yaml(yaml.safe_dump(value)) == value
    if not _beyond_two_bytes(value):
        assert read_yaml(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", ["seed = -1"]),
        ("seed=4294967296", ["seed = 4294967296"]),
        ("recover.recipe.seed=-1", ["recover.recipe.seed"]),
        ("calibrate.texts={calibration: 0}", ["calibrate.texts.calibration = 0"]),
        ("calibrate.texts={calibration: -1.5}", ["calibrate.texts.calibration = -1.5"]),
        ("calibrate.texts={}", ["no calibration text"]),
        ("evaluate={texts: [], tasks: []}", ["nothing to measure"]),
        ("export.formats=[hf, hf]", ["export.formats", "twice"]),
        ("promote.name=a/b:c", ["a/b:c"]),
        ("promote.name=..", [".."]),
        ("promote.alias=latest", ["latest"]),
        ("promote.alias=production", ["'production' needs a gate", "strict, lenient"]),
        ("promote.alias=previous-production", ["kept for the way back"]),
        ("promote.gate=lenient", ["decides about no alias"]),
        ("promote={alias: production, gate: strickt}", ["'strickt'", "ready gates"]),
        (
            "promote={alias: production, gate: assets/texts/prose.txt}",
            ["assets/texts/prose.txt", "not YAML"],
        ),
        ("promote.name=' '", ["promote.name", "that can be shown"]),
        ('promote.name="a\\nb"', ["promote.name 'a\\nb'"]),
        ('promote.name="a\\u202eb"', ["promote.name", "that can be shown"]),
        ("promote.name=" + "n" * 300, ["1 to 100"]),
        ("evaluate.texts=['a,b']", ["text 'a,b'", "MLflow takes no figure"]),
        ("evaluate.texts=['a/../b']", ["text 'a/../b'", "MLflow"]),
        ("evaluate.texts=['']", ["text ''", "MLflow"]),
        ('evaluate.tasks=["a\\nb"]', ["task 'a\\nb'", "MLflow"]),
        ("evaluate.tasks=[" + "n" * 101 + "]", ["MLflow"]),
        ("compute.max_memory=-5", ["compute.max_memory = -5"]),
        ("prune.shard_size=" + "9" * 30, ["prune.shard_size"]),
        ("\udcff=1", ["section.field=value"]),
        ("promote.alias=v3", ["v3"]),
        ("promote.alias=x y", ["x y"]),
        ("evaluate.protocol.batch_size=99999999999999999999", ["batch_size"]),
        ("recover.recipe.rank=9999999999", ["rank"]),
        ("calibrate.samples=99999999999999999999", ["samples"]),
        ("allocate.ratio={a: 1, a: 2}", ["'a' stands twice"]),
        ("allocate.ratio=0_2", ["two readings"]),
    ],
)
def test_what_a_later_stage_refuses_the_dry_run_refuses(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    outcome = run(capfd, "compress", "configs/demo.yaml", "--dry-run", "--set", override)
    outcome.assert_one_line(2, *words)


def test_a_byte_order_mark_is_not_read(tmp_path: Path) -> None:
    text = Path("configs/demo.yaml").read_text(encoding="utf-8")
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8-sig")
    assert load(CompressSettings, tmp_path / "c.yaml") == load(
        CompressSettings, Path("configs/demo.yaml")
    )
    (tmp_path / "c.yaml").write_bytes(text.encode("utf-16"))
    with pytest.raises(InvalidInput, match="not UTF-8"):
        load(CompressSettings, tmp_path / "c.yaml")


def test_a_configuration_that_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 36)
    for path, words in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path / "large", "at most"),
        (Path("/dev/zero"), "at most"),
    ):
        with pytest.raises(InvalidInput, match=words):
            load(CompressSettings, path)


def test_a_configuration_may_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, Path("configs/demo.yaml").read_bytes())
    os.close(writing)
    piped = load(CompressSettings, Path(f"/dev/fd/{reading}"))
    os.close(reading)
    assert piped == load(CompressSettings, Path("configs/demo.yaml"))
