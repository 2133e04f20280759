"""Bad input to compensation on the command line: one line, exit 2, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import Outcome, contents, run
from tests.compression.test_calibrate import prose
from tests.tiny import tiny_model

Prune = Callable[..., Outcome]


@pytest.fixture
def prune(capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path) -> Prune:
    """``bipline prune`` with options that work, some of them replaced or left out (None)."""
    (tmp_path / "text.txt").write_text(prose(1) * 2)

    def call(model: Path = llama, **changed: object) -> Outcome:
        options = {
            "ratio": 0.3, "criterion": "magnitude", "compensation": "obs",
            "calibration": tmp_path / "text.txt", "samples": 16, "seqlen": 16,
            "out": tmp_path / "out", "state": tmp_path / "state", **changed,
        }  # fmt: skip
        given = {name.replace("_", "-"): value for name, value in options.items() if value}
        flags = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        return run(capfd, "prune", model, *flags)

    return call


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"compensation": "rotate"}, ("'rotate' is unknown", "none, bias, least-squares, obs")),
        ({"compensation_option": "rigde=1"}, ("no option 'rigde'", "ridge")),
        ({"compensation_option": "ridge=-1"}, ("ridge=-1", "greater than 0")),
        ({"compensation_option": "ridge=1e300"}, ("ridge=1e300", "less than or equal to")),
        ({"compensation_option": "ridge=inf"}, ("ridge=inf", "finite")),
        ({"compensation_option": "ridge_factors=1,1e300"}, ("ridge_factors", "at most 1e+06")),
        ({"compensation_option": "betas=0,nan"}, ("betas", "finite")),
        ({"compensation_option": f"row_sweeps={10**12}"}, ("row_sweeps", "equal to 1000")),
        ({"compensation_option": f"row_steps={10**12}"}, ("row_steps", "equal to 1000")),
        ({"compensation_option": "betas=2"}, ("betas", "between 0 and 1")),
        ({"compensation_option": "ridge"}, ("write KEY=VALUE",)),
        ({"compensation": "none", "compensation_option": "ridge=1"}, ("none has no options",)),
        ({"compensation": "bias", "compensation_option": "bias=off"}, ("nothing to correct",)),
        ({"samples": 1}, ("at least 2 samples", "1 given")),
        ({"samples": 3}, ("it needs 80", "at least 6 samples of seqlen 16")),
        ({"calibration": None}, ("compensation obs needs --calibration",)),
        ({"max_memory": "10kB"}, ("compensation obs needs", "limit of 0.01 MB")),
    ],
)
def test_refused_before_any_work(
    prune: Prune, tmp_path: Path, changed: dict[str, object], words: tuple[str, ...]
) -> None:
    prune(**changed).assert_one_line(2, *words)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


def test_without_a_number_as_many_samples_as_compensation_needs(
    prune: Prune, tmp_path: Path
) -> None:
    wide = tiny_model(tmp_path / "wide", "llama-gqa", intermediate_size=500)
    (tmp_path / "text.txt").write_text(prose(1) * 2)
    # 1,000 tokens in windows of 4, and a tenth of the windows is held out.
    found = prune(wide, samples=None, seqlen=4)
    assert found.code == 0, found
    assert "samples 278: compensation needs more than 128 on this model" in found.output
    prune(wide, samples=277, seqlen=4, out=tmp_path / "fewer").assert_one_line(
        2, "it needs 1000", "at least 278 samples"
    )


@pytest.mark.parametrize("case", ["qwen2-gqa", "mistral-gqa"])
@pytest.mark.parametrize("changed", [{"compensation": "bias"}, {"compensation_option": "bias=on"}])
def test_a_class_without_biases_is_refused_at_the_start(
    prune: Prune, tmp_path: Path, case: str, changed: dict[str, object]
) -> None:
    model = tiny_model(tmp_path / "model", case)
    prune(model, **changed).assert_one_line(2, "has no bias at o_proj and down_proj", "llama")
    assert not (tmp_path / "out").exists()


def test_corrections_are_written_and_applied_again(prune: Prune, tmp_path: Path) -> None:
    corrections = tmp_path / "corrections"
    outcome = prune(corrections=corrections)
    assert outcome.code == 0, outcome
    assert "compensation obs: matrices took" in outcome.output
    first = contents(tmp_path / "out")
    applied = {"ratio": None, "compensation": None, "calibration": None}
    plan = tmp_path / "out" / "pruning_plan.json"
    for number, more in enumerate(({}, {"plan": plan})):
        out = tmp_path / f"again-{number}"
        assert prune(**applied, **more, corrections=corrections, out=out).code == 0
        assert contents(out) == first
    missing = prune(**applied, plan=plan, out=tmp_path / "more")
    missing.assert_one_line(2, "give the corrections")
    twice = prune(corrections=corrections, ratio=None, out=tmp_path / "more")
    twice.assert_one_line(2, "compensated already")
    both = prune(corrections=corrections, out=tmp_path / "both")
    assert both.code == 0 and "is corrected again" in " ".join(both.output.split())
    assert contents(tmp_path / "both") == first
    other = prune(corrections=corrections, ratio=0.4, out=tmp_path / "more")
    other.assert_one_line(2, "corrections of other inputs", "leave --ratio out")
    wrong = prune(**applied, corrections=tmp_path / "out", out=tmp_path / "more")
    wrong.assert_one_line(2, "holds model, not corrections")
    damaged = next(corrections.glob("block-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    broken = prune(**applied, corrections=corrections, out=tmp_path / "more")
    broken.assert_one_line(1, "does not match its sha256")
    assert not (tmp_path / "more").exists()


def test_a_plan_that_was_given_can_be_compensated(prune: Prune, tmp_path: Path) -> None:
    assert prune(compensation="none", plan_out=tmp_path / "plan.json").code == 0
    applied = {"ratio": None, "plan": tmp_path / "plan.json"}
    assert prune(**applied, out=tmp_path / "compensated").code == 0
    assert prune(out=tmp_path / "at-once").code == 0
    weights = "model.safetensors"
    both = [(tmp_path / name / weights).read_bytes() for name in ("compensated", "at-once")]
    assert both[0] == both[1]
