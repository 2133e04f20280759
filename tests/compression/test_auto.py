"""``auto``: what it stands for, what a user may name beside it, and that it does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import ALLOCATIONS, check_counts_experts
from bipline.compression.auto import AUTO, CHOSEN, method_of, settle, settled_settings
from bipline.compression.criteria import CRITERIA, check_scores_experts
from bipline.model.shapes import shape_of
from bipline.settings.compress import CompressSettings
from bipline.settings.line import LineSettings
from bipline.values.combination import Choice, Method
from bipline.values.compensation import COMPENSATIONS
from tests.command import contents, run
from tests.compression.test_calibrate import prose
from tests.tiny import config_of

ROOT = Path(__file__).parents[2]


LINE = LineSettings(model="m")
EXPLICIT = Choice(name="llm-bip-glu")


def written(text: str) -> str:
    """What a method that is written in a line is settled to, in one line."""
    return settle(Method.parse(text), "uniform")[0].label


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_auto_stands_for_known_parts_and_says_why(layout: str) -> None:
    method, reason = settle(Method(criterion=Choice(name=AUTO)), layout)
    assert method == CHOSEN
    assert method.alias == AUTO
    assert method.criterion.name in CRITERIA
    assert method.allocation and method.allocation.name in ALLOCATIONS
    assert method.compensation and method.compensation.name in COMPENSATIONS
    names = (method.criterion.name, method.allocation.name, method.compensation.name)
    for part in (*names, "docs/auto.md"):
        assert part in reason
    page = (ROOT / "docs" / "auto.md").read_text(encoding="utf-8")
    assert all(f"`{part}`" in page for part in names)
    assert settle(method, layout) == (method, "")


def test_for_a_mixture_auto_stands_for_parts_that_know_experts() -> None:
    method, reason = settle(Method(criterion=Choice(name=AUTO)), "uniform", experts=True)
    assert method.label == "auto/llm-bip-glu/uniform/least-squares"
    assert "llm-bip-glu scores, uniform splits, least-squares corrects; of a mixture" in reason
    shape = shape_of(config_of("mixtral"))
    for within in (False, True):
        check_scores_experts(method.criterion.name, shape.within(within))
        check_counts_experts("uniform", shape.within(within))
    named, _ = settle(Method.parse("auto//none"), "uniform", experts=True)
    assert named.label == "auto/llm-bip-glu/uniform/none"
    given = line(compensate={"compensation_option": {"ridge": 0.1}})
    settled, told = settled_settings(given, experts=True)
    assert settled.compensate.compensation == "least-squares"
    assert settled.compensate.compensation_option == {"ridge": 0.1}
    assert told == reason
    assert settled_settings(settled) == (settled, "")


def test_what_is_named_stays_as_named() -> None:
    assert written("auto/uniform/none") == "auto/llm-bip-glu/uniform/none"
    assert written("auto//bias") == "auto/llm-bip-glu/compensated/bias"
    assert written("auto/compensated:tried=1") == "auto/llm-bip-glu/compensated:tried=1/obs"
    assert written("wanda-sp/standardized") == "wanda-sp/standardized/none"
    assert written("flap:metric=ifv") == "flap:metric=ifv/uniform/none"
    assert written("block-influence:of=sublayers") == "block-influence:of=sublayers/depth/none"
    assert written("llm-bip//obs:ridge=0.1") == "llm-bip/uniform/obs:ridge=0.1"
    assert settle(Method.parse("wanda-sp/standardized"), "uniform")[1] == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("auto:metric=ifv", "auto has no options of its own"),
        ("autoo", "criterion 'autoo' is unknown; known: auto, activation"),
        ("flap:size=1", "criterion flap has no option 'size'"),
        ("flap/even", "allocation 'even' is unknown"),
        ("flap/uniform:size=1", "allocation uniform has no option 'size'"),
        ("auto/learned:steps=0", "allocation learned: option steps=0"),
        ("flap/uniform/ridge", "compensation 'ridge' is unknown"),
        ("flap/uniform/none:ridge=1", "compensation none has no options"),
        ("flap/uniform/obs:ridge=0", "compensation obs: option ridge=0"),
    ],
)
def test_what_does_not_exist_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        written(text)


def line(**sections: dict[str, Any]) -> LineSettings:
    return LineSettings.model_validate({"model": "m", **sections})


def test_settings_are_settled_once() -> None:
    first, reason = settled_settings(LINE)
    assert reason and method_of(first) == CHOSEN.model_copy(update={"alias": None})
    assert settled_settings(first) == (first, "")
    assert (
        first.model_copy(
            update={name: getattr(LINE, name) for name in ("score", "allocate", "compensate")}
        )
        == LINE
    ), "nothing else is touched"
    named = CompressSettings.model_validate(
        {"model": "m", "texts": {"calibration": "a", "held-out": "b"}}
    )
    assert type(settled_settings(named)[0]) is CompressSettings


def test_options_alone_are_of_the_part_that_is_used() -> None:
    given = line(
        allocate={"allocation_option": {"tried": 1}},
        compensate={"compensation_option": {"ridge": 0.1}},
    )
    settled, _ = settled_settings(given)
    assert (settled.allocate.allocation, settled.compensate.compensation) == ("compensated", "obs")
    assert settled.allocate.allocation_option == {"tried": 1}
    assert settled.compensate.compensation_option == {"ridge": 0.1}
    with pytest.raises(InvalidInput, match="allocation uniform has no option 'tried'"):
        settled_settings(
            line(score={"criterion": "flap"}, allocate={"allocation_option": {"tried": 1}})
        )


def test_where_nothing_is_scored_auto_brings_nothing_with_it(tmp_path: Path) -> None:
    corrections = tmp_path / "corrections"
    written_later = line(compensate={"corrections": str(corrections)})
    assert settled_settings(written_later)[0].compensate.compensation == "obs"
    corrections.mkdir()
    (corrections / "manifest.json").write_text("{}")
    for given in (written_later, line(allocate={"plan": "plan.json"})):
        settled, reason = settled_settings(given)
        assert reason == ""
        assert method_of(settled) == settle(Method(criterion=EXPLICIT), "uniform")[0]
        assert settled.compensate.compensation == "none"


def test_prune_by_default_is_the_explicit_method(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(prose(1) * 2)
    assert CHOSEN.allocation and CHOSEN.compensation
    outputs = []
    for name, flags in (
        ("default", []),
        ("explicit", ["--criterion", CHOSEN.criterion.name, "--allocation", CHOSEN.allocation.name,
                      "--compensation", CHOSEN.compensation.name]),
    ):  # fmt: skip
        outcome = run(
            capfd, "prune", llama, "--ratio", "0.3", "--calibration", tmp_path / "text.txt",
            "--samples", "16", "--seqlen", "16", "--out", tmp_path / name,
            "--state", tmp_path / "state", "--json", tmp_path / f"{name}.json", *map(str, flags),
        )  # fmt: skip
        assert outcome.code == 0, outcome
        assert ("auto: " in outcome.output) == (name == "default")
        outputs.append(contents(tmp_path / name))
    assert outputs[0] == outputs[1]
    value = json.loads((tmp_path / "default.json").read_text())
    assert value["compensation"]["name"] == CHOSEN.compensation.name
    assert value["compensation"]["error"] <= value["compensation"]["error_without"]
