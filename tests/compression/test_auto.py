"""``auto``: what it stands for, what a user may name beside it, and that it does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import RULES
from bipline.compression.auto import AUTO, CHOSEN, Method, settled
from bipline.compression.criteria import CRITERIA
from bipline.face.settle import settle
from bipline.settings.compress import CompressConfig
from tests.command import contents, run
from tests.compression.test_calibrate import prose

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_auto_stands_for_known_parts_and_says_why(layout: str) -> None:
    method, reason = settled(Method(AUTO), layout)
    assert method.criterion in CRITERIA and method.rule in RULES
    for part in (method.criterion, method.rule, method.compensation, "docs/auto.md"):
        assert str(part) in reason
    page = (ROOT / "docs" / "auto.md").read_text(encoding="utf-8")
    assert all(f"`{part}`" in page for part in (CHOSEN.criterion, CHOSEN.rule, CHOSEN.compensation))


def test_what_is_named_stays_as_named() -> None:
    named = Method(AUTO, rule="uniform", compensation="none")
    method, _ = settled(named)
    assert (method.rule, method.compensation) == ("uniform", "none")
    explicit = Method("wanda-sp", rule="standardized")
    method, reason = settled(explicit)
    assert (method.criterion, method.rule, method.compensation) == (
        "wanda-sp", "standardized", "none",
    )  # fmt: skip
    assert reason == ""
    with pytest.raises(InvalidInput, match="auto has no options of its own"):
        settled(Method(AUTO, {"metric": "ifv"}))
    with pytest.raises(InvalidInput, match="'autoo' is unknown; known: auto, activation"):
        settled(Method("autoo"))


def test_a_configuration_is_settled_once() -> None:
    texts = {"calibration": "a.txt", "held-out": "b.txt"}
    config = CompressConfig.model_validate({"model": "m", "texts": texts})
    first, reason = settle(config)
    assert reason and first.score.criterion == CHOSEN.criterion
    assert (first.allocate.rule, first.compensate.form) == (CHOSEN.rule, CHOSEN.compensation)
    assert settle(first) == (first, "")


def test_prune_by_default_is_the_explicit_method(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(prose(1) * 2)
    written = []
    for name, flags in (
        ("default", []),
        ("explicit", ["--criterion", CHOSEN.criterion, "--allocation", CHOSEN.rule,
                      "--compensation", CHOSEN.compensation]),
    ):  # fmt: skip
        outcome = run(
            capfd, "prune", llama, "--ratio", "0.3", "--calibration", tmp_path / "text.txt",
            "--samples", "16", "--seqlen", "16", "--out", tmp_path / name,
            "--state", tmp_path / "state", "--json", tmp_path / f"{name}.json", *map(str, flags),
        )  # fmt: skip
        assert outcome.code == 0, outcome
        assert ("auto: " in outcome.output) == (name == "default")
        written.append(contents(tmp_path / name))
    assert written[0] == written[1]
    value = json.loads((tmp_path / "default.json").read_text())
    assert value["compensation"]["form"] == CHOSEN.compensation
    assert value["compensation"]["error"] <= value["compensation"]["error_without"]
