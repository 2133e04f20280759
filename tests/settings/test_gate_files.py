"""Gates as files: the ready ones, what a gate cannot mean, and messages of one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from bipline.base.errors import InvalidInput
from bipline.settings.gate import READY, GateSettings, Limit, Requirements, gate_name, load_gate
from tests.gated import asked

CONFIGS = Path(__file__).parents[2] / "configs" / "gates"
SMALL = {"figure": "parameters", "at_most": 800}


SENSELESS: dict[str, tuple[Callable[[], GateSettings], str]] = {
    "nothing asked": (lambda: asked(), "lets everything through"),
    "no such figure": (lambda: asked({"figure": "perplxity.prose", "at_most": 3.0}), "no such"),
    "no bound": (lambda: asked({"figure": "parameters"}), "give one of"),
    "two bounds": (lambda: asked({**SMALL, "at_least": 3.0}), "give one of"),
    "worse than nothing": (lambda: asked({"figure": "parameters", "worse_at_most": 0.1}), "what"),
    "a value against dense": (lambda: asked({**SMALL, "against": "dense"}), "worse_at_most"),
    "a sign that is wrong": (
        lambda: asked({"figure": "perplexity.prose", "against": "dense", "worse_at_most": -0.1}),
        "greater than",
    ),
    "neither better": (
        lambda: asked({"figure": "reached_total", "against": "dense", "worse_at_most": 0.1}),
        "neither",
    ),
    "NaN": (lambda: asked({**SMALL, "at_most": math.nan}), "finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", SENSELESS)
def test_a_gate_that_means_nothing_is_none(case: str) -> None:
    make, word = SENSELESS[case]
    with pytest.raises(ValidationError, match=word):
        make()


@pytest.mark.parametrize("name", READY)
def test_a_ready_gate_explains_every_line(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text("utf-8")
    told = [line.strip() for line in text.splitlines() if line.strip()]
    for above, line in pairwise(told):
        if line.startswith("- {"):
            assert above.startswith(("#", "- {")), line
    gate = load_gate(name)
    assert gate == load_gate(str(CONFIGS / f"{name}.yaml"))
    assert set(yaml.safe_load(text)["requirements"]) == set(Requirements.model_fields)
    assert gate_name(name) == name and gate_name(f"/a/{name}.yaml") == f"{name}.yaml"


def test_the_strict_gate_asks_more() -> None:
    strict, lenient = map(load_gate, READY)
    assert {limit.figure for limit in lenient.limits} < {limit.figure for limit in strict.limits}
    assert strict.digest != lenient.digest
    assert all(limit.judged_by == "interval" for limit in strict.limits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limits: [{figur: parameters, at_most: 3}]", ["figur"]),
        ("limits: [{figure: parameters, at_most: a lot}]", ["limits.0.at_most", "a lot"]),
        ("limits: []", ["lets everything through"]),
        ("limits: [{figure: parameters, at_most: 3}]\nlimts: []", ["did you mean 'limits'"]),
        ("- 3", ["not a mapping"]),
    ],
)
def test_a_file_that_is_no_gate_is_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput) as refused:
        load_gate(str(path))
    for word in (str(path), *words):
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_gate_nobody_knows() -> None:
    with pytest.raises(InvalidInput, match="ready gates: strict, lenient"):
        load_gate("strickt")
    with pytest.raises(InvalidInput, match="no such configuration file"):
        load_gate("/nonexistent/gate.yaml")


@pytest.mark.parametrize("kind", [Limit, Requirements, GateSettings])
def test_every_field_says_what_it_is(kind: type[Limit]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name


def test_the_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "limits:\n  # a comment\n  - {figure: parameters, at_most: 800}\n"
    )
    assert load_gate(str(tmp_path / "a.yaml")).digest == asked(SMALL).digest
    assert asked(SMALL).digest != asked({**SMALL, "at_most": 801}).digest
