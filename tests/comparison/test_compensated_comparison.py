"""Comparisons that compensate: rows are what prune gives, auto is what it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bipline.comparison import inputs, rows
from bipline.comparison.grid import line_of
from bipline.compression.auto import CHOSEN
from bipline.compression.compensation.checks import needed_bytes
from bipline.compression.compensation.engine import _Engine
from bipline.compression.corrections import open_corrections
from bipline.model.opening import open_checkpoint
from bipline.storage.manifest import verify_directory
from bipline.values.combination import Choice
from tests.command import run
from tests.comparing import SAMPLES, SEQLEN, Bench, figures
from tests.tiny import tiny_model, token_windows

HUGE = 10**12
PARTS = [part.name for part in (CHOSEN.criterion, CHOSEN.allocation, CHOSEN.compensation) if part]


@pytest.fixture
def bench(llama: Path, tmp_path: Path) -> Bench:
    return Bench.of(llama, tmp_path)


@pytest.fixture
def corrected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that were fitted, one after the other."""
    seen: list[int] = []
    correct = _Engine.correct

    def counted(self: _Engine, block: Any) -> Any:
        seen.append(block.index)
        return correct(self, block)

    monkeypatch.setattr(_Engine, "correct", counted)
    return seen


@pytest.mark.parametrize(
    "method",
    [
        "auto",
        "wanda-sp/uniform/obs:ridge=0.1",
        "magnitude/uniform/least-squares:sequential=false",
        "flap:metric=ifv/standardized/bias",
    ],
)
def test_a_row_is_what_prune_gives(
    bench: Bench, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    [row] = bench.compare("out", criteria="", methods=(method,), seeds=(3,)).rows
    assert row.measured and row.measured.compensated, row.refusal
    folder, flags = bench.folder, ("criterion", "allocation", "compensation")
    asked = [Choice.parse(part) for part in method.split("/")]
    given = [
        part
        for flag, choice in zip(flags, asked, strict=False)
        for part in (
            f"--{flag}", choice.name,
            *(p for k, v in choice.options.items() for p in (f"--{flag}-option", f"{k}={v}")),
        )
    ]  # fmt: skip
    outcome = run(
        capfd, "prune", bench.model, "--out", folder / "pruned", "--ratio", "0.3", "--seed", "3",
        "--calibration", folder / "calibration.txt", "--samples", str(SAMPLES), "--seqlen",
        str(SEQLEN), "--device", "cpu", "--state", folder / "state", "--corrections",
        folder / "corrections", *given,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    plan, _ = open_corrections(folder / "corrections")
    found = open_checkpoint(folder / "pruned")
    assert row.measured.plan_digest == plan.digest
    assert row.measured.tensor_digest == found.tensor_digest
    assert plan.compensated and row.measured.compensated.forms == plan.compensated.counts()
    assert row.cost.seconds.keys() == {"score", "allocate", "compensate", "prune", "evaluate"}


def test_compensation_says_what_it_did(bench: Bench) -> None:
    plain, corrected = bench.compare("out", compensations="none,obs").rows
    assert plain.measured and corrected.measured
    assert plain.measured.compensated is None and "compensate" not in plain.cost.seconds
    did = corrected.measured.compensated
    assert did and sum(did.forms.values()) == 4, "two matrices in each of two blocks"
    assert did.fitted_tokens + did.held_out_tokens == SAMPLES * SEQLEN
    assert all(one <= two for one, two in zip(did.error, did.error_without, strict=True))
    assert plain.measured.parameters == corrected.measured.parameters
    assert plain.measured.perplexity != corrected.measured.perplexity


def test_auto_is_the_row_that_it_stands_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Mock(side_effect=rows.evaluate)
    monkeypatch.setattr(rows, "evaluate", measured)
    named = "/".join(PARTS)
    auto, explicit = bench.compare("out", criteria="auto", methods=(named,), keep=True).rows
    assert measured.call_count == 1
    assert auto.combination.alias == "auto" and explicit.combination.alias is None
    stands_for = named.replace("/", ", ")
    assert (auto.combination.method, explicit.combination.method) == (
        f"auto ({stands_for})", stands_for,
    )  # fmt: skip
    assert auto.measured and auto.measured == explicit.measured
    assert auto.directory == explicit.directory


def test_auto_brings_what_is_not_named(bench: Bench) -> None:
    def methods(**axes: Any) -> list[str]:
        return [each.method for each in bench.combinations(**axes)]

    criterion, allocation, compensation = PARTS
    assert methods(criteria="auto,wanda-sp") == [
        f"auto ({criterion}, {allocation}, {compensation})", "wanda-sp, uniform",
    ]  # fmt: skip
    assert methods(criteria="auto,wanda-sp", compensations="none,bias") == [
        f"auto ({criterion}, {allocation})", f"auto ({criterion}, {allocation}, bias)",
        "wanda-sp, uniform", "wanda-sp, uniform, bias",
    ]  # fmt: skip
    assert methods(criteria="auto", allocations="uniform") == [
        f"auto ({criterion}, uniform, {compensation})"
    ]
    named = ("flap/uniform/bias", "block-influence", "auto//obs:ridge=0.1")
    assert methods(criteria="", methods=named) == [
        "flap, uniform, bias", "block-influence, depth",
        f"auto ({criterion}, {allocation}, obs:ridge=0.1)",
    ]  # fmt: skip


def test_every_option_of_a_compensation_is_part_of_the_key(bench: Bench) -> None:
    compensations = "none,bias,obs,obs:ridge=0.1,obs:ridge=0.2"
    bench.compare("out", criteria="magnitude", compensations=compensations)
    work = bench.folder / "out" / "work"
    assert len(list(work.glob("row/*/value.json"))) == 5
    assert len(list(work.glob("score/*/manifest.json"))) == 1


def test_what_compensation_needs_counts_for_every_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(bench.model)
    tried = bench.combinations(compensations="none,bias,obs")
    none, bias, obs = (needed_bytes(checkpoint, line_of(each).compensate, 8, 16) for each in tried)
    assert none == 0 < bias < obs
    # Of so small a model the logits of the texts need more than all of this.
    monkeypatch.setattr(
        inputs, "needed_bytes", lambda _, each, *_sizes: (each.chosen != "none") * HUGE
    )
    texts = list(bench.inputs().models[bench.model.name].texts.values())
    needs = [
        inputs.check_windows(checkpoint, texts, bench.settings(), some, [token_windows()])
        for some in (tried[:1], tried)
    ]
    assert needs[0] < HUGE <= needs[1]


def test_refusals_of_compensation_are_rows_with_their_reason(bench: Bench) -> None:
    compensations = "obs:held_out=0.9,bias:bias=off,least-squares"
    few, nothing, measured = bench.compare("out", compensations=compensations).rows
    assert few.refusal and "at least 45 samples of seqlen 16" in few.refusal
    assert nothing.refusal and "bias=off has nothing to correct" in nothing.refusal
    assert measured.measured


def test_a_class_without_biases_refuses_to_add_them(tmp_path: Path) -> None:
    bench = Bench.of(tiny_model(tmp_path / "qwen", "qwen3-gqa"), tmp_path)
    bias, obs = bench.compare("out", compensations="bias,obs").rows
    assert bias.refusal and "has no bias at o_proj and down_proj" in bias.refusal
    assert obs.measured


def test_a_second_run_corrects_nothing(bench: Bench, corrected: list[int]) -> None:
    axes: dict[str, Any] = {"criteria": "magnitude", "compensations": "none,least-squares"}
    first = bench.compare("out", **axes)
    assert corrected == [0, 1]
    assert bench.compare("out", **axes) == first
    assert corrected == [0, 1]


def test_interrupted_in_a_block_it_goes_on_after_the_last(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, corrected: list[int]
) -> None:
    whole = bench.compare("whole", compensations="obs")
    correct = _Engine.correct

    def interrupted(self: _Engine, block: Any) -> Any:
        if block.index == 1:
            raise KeyboardInterrupt
        return correct(self, block)

    with monkeypatch.context() as patched:
        patched.setattr(_Engine, "correct", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.compare("out", compensations="obs")
    corrected.clear()
    assert figures(bench.compare("out", compensations="obs")) == figures(whole)
    assert corrected == [1]


def test_corrections_are_kept_beside_a_kept_model_and_not_else(bench: Bench) -> None:
    bench.compare("out", compensations="obs")
    work = bench.folder / "out" / "work"
    assert sorted(path.name for path in work.iterdir()) == ["calibrate", "evaluate", "row", "score"]
    assert not list(work.glob("row/*.work"))
    [row] = bench.compare("out", compensations="obs", keep=True).rows
    assert row.directory and row.measured
    place = bench.folder / "out" / row.directory
    plan, _ = open_corrections(place.with_name(f"{place.name}.corrections"))
    assert plan.digest == row.measured.plan_digest
    assert verify_directory(place).info["parameters"] == row.measured.parameters.after
    assert len(list(place.parent.iterdir())) == 2
