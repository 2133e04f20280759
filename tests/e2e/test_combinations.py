"""Every criterion, allocation and layout that the help lists: a package that loads, or a reason.

Budgets are small, so this says that combinations work, not how well. The quick half runs every
criterion and every allocation once on the smallest model; the slow half all of them on all models.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate
from bipline.compression.allocation import ALLOCATIONS, load_allocation
from bipline.compression.calibrate import calibrate
from bipline.compression.computing import Computing
from bipline.compression.criteria import CRITERIA, load_criterion, options_of
from bipline.compression.prune import prune
from bipline.compression.score import score_model
from bipline.compression.statistics import Scores
from bipline.compression.windows import Windows
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings
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
    drawn = calibrate(checkpoint.folder, [(text, 1.0)], samples=samples, seqlen=48, seed=0)
    return checkpoint, Windows(drawn.token_ids, drawn.digest, Computing())


@cache
def scored(data: Path, model: str, criterion: str) -> Scores:
    checkpoint, windows = opened(data, model)
    options = options_of(criterion, 0, SMALL.get(criterion, {}))
    return score_model(checkpoint, windows, criterion, options)[1]


def check(data: Path, model: str, criterion: str, allocation: str, layout: str, out: Path) -> str:
    """Allocate, prune and load; the reason where the combination is refused."""
    # Gram matrices need more tokens than twice the columns, and more than the searches get.
    checkpoint, windows = opened(data, model, 36 if allocation == "compensated" else 18)
    settings = AllocateSettings.model_validate({
        "ratio": RATIO, "allocation": allocation, "allocation_option": SMALL.get(allocation, {}),
        "layout": layout,
    })  # fmt: skip
    try:
        plan = allocate(checkpoint, scored(data, model, criterion), settings, 0, windows)
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


def expected_refusal(criterion: str, allocation: str, layout: str) -> str:
    """Part of the reason that must be given, empty where the combination must run."""
    if (allocation == "depth") != (options_of(criterion).prunes != "groups"):
        return "scores groups" if allocation == "depth" else "only allocation depth uses that"
    return (
        "cannot choose uniform widths"
        if layout == "uniform" and load_allocation(allocation).NOT_UNIFORM
        else ""
    )


def hold(data: Path, model: str, criterion: str, allocation: str, layout: str, out: Path) -> None:
    reason = check(data, model, criterion, allocation, layout, out)
    expected = expected_refusal(criterion, allocation, layout)
    assert (expected in reason) if expected else not reason


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_prunes_by_its_default_allocation(
    data: Path, tmp_path: Path, criterion: str
) -> None:
    allocation = "uniform" if options_of(criterion).prunes == "groups" else "depth"
    hold(data, "stories260K", criterion, allocation, "uniform", tmp_path / "out")
    scores = scored(data, "stories260K", criterion).blocks
    told = getattr(load_criterion(criterion), "QUERY_HEADS", False)
    assert told == (scores[0].attention_channels is not None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("allocation", sorted(ALLOCATIONS))
def test_every_allocation_gives_both_layouts_or_a_reason(
    data: Path, tmp_path: Path, allocation: str, layout: str
) -> None:
    criterion = "block-influence" if allocation == "depth" else "llm-bip-exact"
    hold(data, "stories260K", criterion, allocation, layout, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_combination(data: Path, tmp_path: Path, model: str, criterion: str) -> None:
    """On the small model all; on others a third of the allocations and a layout, by turns."""
    turn = sorted(MODELS).index(model) + sorted(CRITERIA).index(criterion)
    for number, allocation in enumerate(sorted(ALLOCATIONS)):
        if allocation == "compensated" and criterion != "llm-bip-exact":
            continue  # its widths do not depend on scores, and take long
        small = model == "stories260K"
        if not small and (turn + number) % 3 and allocation != "compensated":
            continue
        one = LAYOUTS[(turn // 3 + number) % len(LAYOUTS)]
        for layout in LAYOUTS if small else (one,):
            hold(data, model, criterion, allocation, layout, tmp_path / f"{allocation}-{layout}")


def test_sublayers_need_the_per_layer_layout(data: Path, tmp_path: Path) -> None:
    checkpoint, windows = opened(data, "stories260K")
    options = options_of("block-influence", 0, {"of": "sublayers"})
    _, scores = score_model(checkpoint, windows, "block-influence", options)
    with pytest.raises(InvalidInput, match="dropped sublayers leave blocks that differ"):
        allocate(checkpoint, scores, AllocateSettings(ratio=RATIO), 0)
    plan = allocate(checkpoint, scores, AllocateSettings(ratio=RATIO, layout="per-layer"), 0)
    prune(checkpoint, plan, tmp_path / "out")
    load_model(tmp_path / "out", torch.float32)
