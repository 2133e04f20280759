"""The operations that steps are said to take, beside those that PyTorch was then asked for.

The seconds of an estimate are operations over a rate; a test of seconds would follow how busy the
machine is, and this one follows nothing but the work.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.operations import OperationCounter
from bipline.compression.auto import settled_settings
from bipline.model.floor import Rates
from bipline.model.opening import open_checkpoint
from bipline.settings.compress import CompressSettings
from bipline.stages import line, resolve
from bipline.stages.stage import Context
from bipline.stages.step_needs import step_needs
from bipline.storage.local_store import LocalStore
from tests.conftest import ASSETS
from tests.pipeline.conftest import configuration
from tests.quality.test_zero_shot import CLOZE

pytestmark = pytest.mark.slow
FACTOR = 1.5
# Letters of each text. Where windows of calibration overlap, steps for kept rows stop long before
# the last, and all of them are said.
TEXTS = {"calibration": 40_000, "recovery-judge": 16_000, "held-out": 16_000}
# What the demo does of it, and what a compensation does that leaves nothing out.
FITTED = {
    "quick": {"row_steps": 0, "input_maps": False, "generated_windows": 0},
    "rows and maps": {"generated_windows": 0},
}


@pytest.fixture(scope="module", params=FITTED)
def counted(
    request: pytest.FixtureRequest, reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, float], dict[str, float]]:
    """Operations said and counted, by step."""
    folder = tmp_path_factory.mktemp("operations")
    for name, letters in TEXTS.items():
        text = (ASSETS / "texts" / f"{name}.txt").read_text("utf-8")
        (folder / f"{name}.txt").write_text(text[:letters], encoding="utf-8")
    texts = {name: str(folder / f"{name}.txt") for name in TEXTS}
    rows = folder / "cloze.jsonl"
    rows.write_text("".join(CLOZE.read_text().splitlines(keepends=True)[:24]))
    recipe = {"rank": 2, "steps": 2, "batch_size": 8, "seqlen": 128, "dropout": 0.0}
    settings = configuration(
        reference, folder, texts=texts, score={"criterion": "llm-bip-glu"},
        compensate={"compensation": "least-squares", "compensation_option": FITTED[request.param]},
        calibrate={"samples": 16, "seqlen": 128}, tasks={"cloze": str(rows)},
        recover={
            "enabled": True, "text": "calibration", "held_out": "recovery-judge", "recipe": recipe,
        },
        evaluate={"protocol": {"seqlen": 128}, "tasks": ("cloze",)},
    )  # fmt: skip
    settings, _ = settled_settings(settings)
    needs = step_needs(settings, open_checkpoint(str(reference)), Rates(1, 1, 1))
    return {name: need.operations for name, need in needs.items()}, _counted(
        settings, folder, request.param == "quick"
    )


def _counted(settings: CompressSettings, folder: Path, whole: bool) -> dict[str, float]:
    context = Context(LocalStore(folder / "store"), settings.compute, settings.seed)
    found: dict[str, float] = {}
    given = resolve.resolve(settings, folder)
    model, texts = given.model, given.texts
    protocol = settings.evaluate.protocol

    def count(name: str, act: Callable[[], Any]) -> Any:
        with OperationCounter() as counter, sdpa_kernel(SDPBackend.MATH):
            made = act()
        found[name] = counter.total
        return made

    windows = line.calibrate.calibrate(context, model, texts, settings.calibrate, ())
    scored = count("score", lambda: line.score.score(context, model, windows, settings.score))
    plan = line.allocate.allocate(context, model, windows, scored, settings.allocate)
    plan, fixed = count(
        "compensate",
        lambda: line.compensate.compensate(context, model, windows, plan, settings.compensate),
    )
    if not whole:
        return found
    pruned = line.prune.prune(context, model, plan, fixed, settings.prune, [])
    count(
        "recover",
        lambda: line.recover.recover(context, pruned, texts, settings.recover, (), model),
    )
    given = given.subset(("held-out",), ("cloze",))
    count("evaluate_dense", lambda: line.evaluate.evaluate_dense(context, given, protocol))
    count("evaluate_pruned", lambda: line.evaluate.evaluate(context, pruned, given, protocol))
    return found


def test_operations(counted: tuple[dict[str, float], dict[str, float]]) -> None:
    said, used = counted
    for step, count in used.items():
        assert count / FACTOR <= said[step] <= count * FACTOR, (step, said[step] / count)
