"""Every criterion, rule and layout that the help lists: a package that loads, or a reason.

Budgets are small, so this says that combinations work, not how well. The quick half runs every
criterion and every rule once on the smallest model; the slow half runs all of them on all models.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import AllocationRequest, allocate
from bipline.compression.allocation import RULES, load_rule
from bipline.compression.allocation.problem import Windows
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria import CRITERIA, options_of
from bipline.compression.prune import prune
from bipline.compression.score import Calibration, score_model
from bipline.compression.statistics import Scores
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.storage.manifest import verify_directory

LAYOUTS = ("uniform", "per-layer")
MODELS = {
    "reference-llm": "novels.calibration.txt",
    "reference-mha": "novels.calibration.txt",
    "stories260K": "tinystories.train.txt",
}
# Budgets that take a second in the place of the defaults, which take minutes.
SMALL: dict[str, dict[str, object]] = {
    "policy-gradient": {"tokens": 6000},
    "bi-level": {"tokens": 6000},
    "block-shapley": {"samples": 2},
    "compensated": {"probes": 1},
    "error-aware": {"samples": 2, "grid": 5},
    "learned": {"steps": 2, "samples": 4},
    "threshold": {"tokens": 4000},
}
RATIO = 0.3


@cache
def opened(data: Path, model: str, samples: int = 18) -> tuple[Checkpoint, Windows]:
    checkpoint = open_checkpoint(data / "models" / model)
    text = data / "text" / MODELS[model]
    drawn = calibrate(checkpoint.folder, {text: 1.0}, samples=samples, seqlen=48, seed=0)
    return checkpoint, Windows(drawn.token_ids, Computing(), drawn.digest)


@cache
def scored(data: Path, model: str, criterion: str) -> Scores:
    checkpoint, windows = opened(data, model)
    options = options_of(criterion, 0, SMALL.get(criterion, {}))
    calibration = Calibration(windows.token_ids, windows.digest)
    return score_model(checkpoint, calibration, criterion, options, windows.computing)[1]


def check(data: Path, model: str, criterion: str, rule: str, layout: str, out: Path) -> str:
    """Allocate, prune and load; the reason where the combination is refused."""
    # Gram matrices need more tokens than twice the columns, and more than the searches get.
    checkpoint, windows = opened(data, model, 36 if rule == "compensated" else 18)
    options = SMALL.get(rule, {})
    request = AllocationRequest(RATIO, rule=rule, options=options, layout=layout)
    try:
        plan = allocate(checkpoint, scored(data, model, criterion), request, windows)
    except InvalidInput as refusal:
        return str(refusal)
    assert plan.budget.reached_blocks >= RATIO
    prune(checkpoint, plan, out)
    manifest = verify_directory(out)
    model_of_package = load_model(out, torch.float32)
    assert sum(p.numel() for p in model_of_package.parameters()) == manifest.info["parameters"]
    with torch.no_grad():
        logits = model_of_package(windows.token_ids[:1]).logits
    assert bool(logits.isfinite().all())
    return ""


def expected_refusal(criterion: str, rule: str, layout: str) -> str:
    """Part of the reason that must be given, empty where the combination must run."""
    if (rule == "depth") != (options_of(criterion).prunes != "groups"):
        return "scores groups" if rule == "depth" else "only allocation depth uses that"
    return (
        "cannot choose uniform widths"
        if layout == "uniform" and load_rule(rule).NOT_UNIFORM
        else ""
    )


def hold(data: Path, model: str, criterion: str, rule: str, layout: str, out: Path) -> None:
    reason = check(data, model, criterion, rule, layout, out)
    expected = expected_refusal(criterion, rule, layout)
    assert (expected in reason) if expected else not reason


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_prunes_by_its_default_rule(
    data: Path, tmp_path: Path, criterion: str
) -> None:
    rule = "uniform" if options_of(criterion).prunes == "groups" else "depth"
    hold(data, "stories260K", criterion, rule, "uniform", tmp_path / "out")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_gives_both_layouts_or_a_reason(
    data: Path, tmp_path: Path, rule: str, layout: str
) -> None:
    criterion = "block-influence" if rule == "depth" else "llm-bip-exact"
    hold(data, "stories260K", criterion, rule, layout, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_combination(data: Path, tmp_path: Path, model: str, criterion: str) -> None:
    """On the small model all of them; on the others a third of the rules and a layout, by turns."""
    turn = sorted(MODELS).index(model) + sorted(CRITERIA).index(criterion)
    for number, rule in enumerate(sorted(RULES)):
        if rule == "compensated" and criterion != "llm-bip-exact":
            continue  # its widths do not depend on scores, and take long
        small = model == "stories260K"
        if not small and (turn + number) % 3 and rule != "compensated":
            continue
        one = LAYOUTS[(turn // 3 + number) % len(LAYOUTS)]
        for layout in LAYOUTS if small else (one,):
            hold(data, model, criterion, rule, layout, tmp_path / f"{rule}-{layout}")


def test_sublayers_need_the_per_layer_layout(data: Path, tmp_path: Path) -> None:
    checkpoint, windows = opened(data, "stories260K")
    options = options_of("block-influence", 0, {"of": "sublayers"})
    calibration = Calibration(windows.token_ids, windows.digest)
    _, scores = score_model(checkpoint, calibration, "block-influence", options, windows.computing)
    with pytest.raises(InvalidInput, match="dropped sublayers leave blocks that differ"):
        allocate(checkpoint, scores, AllocationRequest(RATIO))
    plan = allocate(checkpoint, scores, AllocationRequest(RATIO, layout="per-layer"))
    prune(checkpoint, plan, tmp_path / "out")
    load_model(tmp_path / "out", torch.float32)
