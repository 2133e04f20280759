"""A gate on the format that is promoted: its own figures, by its own engine, or it cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bipline.base.errors import InvalidInput
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import validated
from bipline.stages.gate_figures import check_format_limits
from tests.gated import Documents, asked, check, documents, edited, evidence, verdict

ENGINE, MODEL = {"value": 8.0, "nll": math.log(8.0)}, {"value": 7.0, "nll": math.log(7.0)}
NAMED = "format_perplexity.gguf.prose"
INCREASE = "format_perplexity_increase.gguf.prose"


def exported(**changes: Any) -> dict[str, Any]:
    """What llama.cpp said of a gguf of the good package."""
    check_ = {
        "engine": "llama.cpp", "page_tokens": 9, "special_tokens_same": True, "contexts": 8,
        "compared": 80, "largest_difference": 0.1, "divergence": 1e-4,
        "divergence_as_stored": 1e-5, "continuation": [],
    }  # fmt: skip
    text = {"sha256": "a" * 64, "seqlen": 16, "windows": 2, "engine": {**ENGINE, "tokens": 30}}
    text["model"] = {**MODEL, "tokens": 30}
    return {
        "schema_version": 1, "format": "gguf", "type": "q8_0", "architecture": "llama",
        "origin": {"name": "it", "tensor_digest": "p" * 64}, "parameters": 700, "file_bytes": 900,
        "notes": [], "check": check_, "perplexity": {"prose": text}, **changes,
    }  # fmt: skip


def with_gguf(edit: Callable[[Documents], object] = lambda _: None, **changes: Any) -> Documents:
    def add(changed: Documents) -> None:
        changed["manifest"]["formats"] = ["hf", "gguf"]
        changed["evaluation.json"]["formats"] = {"gguf": exported(**changes)}
        edit(changed)

    return edited(documents(), add)


def other_text(changed: Documents) -> None:
    changed["evaluation.json"]["formats"]["gguf"]["perplexity"]["prose"]["sha256"] = "e" * 64


def infinite(changed: Documents) -> None:
    changed["evaluation.json"]["formats"]["gguf"]["perplexity"]["prose"]["engine"]["value"] = 0.5


CASES: dict[str, tuple[dict[str, Any], Documents, str, str]] = {
    "low enough": ({"figure": NAMED, "at_most": 8.0}, with_gguf(), NAMED, "pass"),
    "too high": ({"figure": NAMED, "at_most": 7.9}, with_gguf(), NAMED, "fail"),
    "not exported": ({"figure": NAMED, "at_most": 8.0}, documents(), NAMED, "cannot tell"),
    "not measured": (
        {"figure": NAMED, "at_most": 8.0}, with_gguf(perplexity={}), NAMED, "cannot tell",
    ),
    "another text": (
        {"figure": NAMED, "at_most": 8.0}, with_gguf(other_text), NAMED, "cannot tell",
    ),
    "other tensors": (
        {"figure": NAMED, "at_most": 8.0},
        with_gguf(origin={"name": "it", "tensor_digest": "q" * 64}), NAMED, "cannot tell",
    ),
    "another format's": (
        {"figure": NAMED, "at_most": 8.0}, with_gguf(format="onnx"), NAMED, "cannot tell",
    ),
    "not a record": ({"figure": NAMED, "at_most": 8.0}, with_gguf(type=7), NAMED, "cannot tell"),
    "no perplexity": ({"figure": NAMED, "at_most": 8.0}, with_gguf(infinite), NAMED, "cannot tell"),
    "a small increase": ({"figure": INCREASE, "at_most": 0.15}, with_gguf(), INCREASE, "pass"),
    "a large increase": ({"figure": INCREASE, "at_most": 0.14}, with_gguf(), INCREASE, "fail"),
    "every text": (
        {"figure": "format_perplexity.gguf.*", "at_most": 8.0}, with_gguf(), NAMED, "pass",
    ),
    "every text, none measured": (
        {"figure": "format_perplexity.gguf.*", "at_most": 8.0}, documents(), NAMED, "cannot tell",
    ),
    "small": (
        {"figure": "format_bytes.gguf", "at_most": 900}, with_gguf(), "format_bytes.gguf", "pass",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_limit_on_a_format_says(case: str) -> None:
    limit, package, name, answer = CASES[case]
    found = verdict(asked(limit), evidence(package))
    assert check(found, name).answer == answer, check(found, name)
    assert found.passed == (answer == "pass")


def test_a_verdict_names_the_formats_it_is_about() -> None:
    limit = {"figure": NAMED, "at_most": 8.0}
    found = verdict(asked(limit), evidence(with_gguf()))
    told = check(found, "package")
    assert "as hf has them" in told.sentence and "gguf (q8_0)" in told.sentence
    assert told.numbers == {"gguf type": "q8_0"}
    assert "gguf" in check(found, NAMED).sentence
    plain = check(verdict(asked({"figure": "parameters", "at_most": 800}), evidence(documents())),
                  "package")  # fmt: skip
    assert "hf" not in plain.sentence and plain.numbers == {}


@pytest.mark.parametrize(
    "limit",
    [
        {"figure": "format_perplexity.gguf", "at_most": 1.0},
        {"figure": "format_perplexity", "at_most": 1.0},
        {"figure": "format_bytes.gguf.prose", "at_most": 1.0},
        {"figure": NAMED, "against": "dense", "worse_at_most": 0.1},
        {"figure": NAMED, "against": "champion", "worse_at_most": 0.1},
    ],
)
def test_a_limit_on_a_format_names_it_and_stands_alone(limit: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="format"):
        asked(limit)


def test_what_a_run_will_not_have_measured_is_refused_before_it(tmp_path: Path) -> None:
    given = {"model": "m", "texts": {"calibration": "c", "held-out": "h"}}
    hf = validated(CompressSettings, given)
    both = validated(CompressSettings, {**given, "export": {"formats": ("hf", "gguf")}})
    gate = asked({"figure": "format_perplexity.gguf.held-out", "at_most": 8.0})
    check_format_limits(gate, both)
    check_format_limits(asked({"figure": "format_perplexity.gguf.*", "at_most": 8.0}), both)
    with pytest.raises(InvalidInput, match="hf alone"):
        check_format_limits(gate, hf)
    with pytest.raises(InvalidInput, match=r"evaluate\.texts"):
        check_format_limits(asked({"figure": NAMED, "at_most": 8.0}), both)
    with pytest.raises(InvalidInput, match=r"export\.formats"):
        check_format_limits(asked({"figure": "format_bytes.hf", "at_most": 8.0}), both)
