"""A dry run names every refusal that the run itself would make later, in the run's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import BiplineError, InvalidInput
from bipline.compression.auto import settled_settings
from bipline.delivery.registries.mlflow import check_names
from bipline.settings.compress import CompressSettings
from bipline.stages import evaluate, line, recover, resolve
from bipline.stages.stage import Context
from bipline.storage.local_store import LocalStore
from tests.pipeline.conftest import write_text
from tests.stages.drivers import Request

RECIPE = {"rank": 2, "steps": 1, "batch_size": 4, "seqlen": 16}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "too few windows": ({"calibrate": {"samples": 9000, "seqlen": 16}}, "windows of 16 tokens"),
    "too long windows": ({"calibrate": {"samples": 2, "seqlen": 999}}, "999"),
    "evaluation windows too long": ({"evaluate": {"protocol": {"seqlen": 1000}}}, "1000"),
    "overlap": ({"calibrate": {"texts": {"held-out": 1.0}, "samples": 8, "seqlen": 16}}, "13-gram"),
    "ratio": ({"allocate": {"ratio": 0.999}}, "0.999"),
    "ratio out of range": ({"allocate": {"ratio": 7.0}}, "ratio 7"),
    "criterion": ({"score": {"criterion": "llm-bop"}}, "llm-bop"),
    "criterion option": (
        {"score": {"criterion": "llm-bip-glu", "criterion_option": {"odd": 1}}}, "odd",
    ),
    "allocation option": ({"allocate": {"ratio": 0.3, "allocation_option": {"odd": 1}}}, "odd"),
    "compensation option": (
        {"compensate": {"compensation": "bias", "compensation_option": {"odd": 1}}}, "odd",
    ),
    "recovery text": (
        {"recover": {"enabled": True, "text": "short", "held_out": "other", "recipe": RECIPE}},
        "fewer than one batch",
    ),
    "recovery judge": (
        {"recover": {"enabled": True, "text": "calibration", "held_out": "tiny", "recipe": RECIPE}},
        "shorter than one window",
    ),
    "recovery text is measured on": (
        {"recover": {"enabled": True, "text": "held-out", "held_out": "tiny", "recipe": RECIPE}},
        "recover on other text",
    ),
    "recovery judge is measured on": (
        {"recover": {"enabled": True, "text": "other", "held_out": "held-out", "recipe": RECIPE}},
        "recover on other text",
    ),
    "recovery judge is trained on": (
        {"recover": {"enabled": True, "text": "other", "held_out": "other", "recipe": RECIPE}},
        "recover on other text",
    ),
    "task without rows": ({"evaluate": {"tasks": ("empty",)}}, "holds no row"),
    "nothing to measure": ({"evaluate": {"texts": ()}}, "nothing to measure"),
    "name": ({"promote": {"name": "a'b"}}, "a'b"),
    "alias": ({"promote": {"name": "a", "alias": "v1"}}, "v1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def request_of(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("refusals")
    for seed, name in enumerate(("calibration", "held-out", "other"), start=1):
        write_text(folder / f"{name}.txt", seed)
    (folder / "short.txt").write_text("oak elm " * 4)
    (folder / "tiny.txt").write_text("oak")
    (folder / "empty.jsonl").write_text("")
    return Request(str(llama), folder)


def settings_of(request: Request, sections: dict[str, Any]) -> CompressSettings:
    names = ("calibration", "held-out", "other", "short", "tiny")
    texts = {name: request.text(name) for name in names}
    tasks = {"empty": str(request.folder / "empty.jsonl")}
    used = {"empty": tasks["empty"]} if sections.get("evaluate", {}).get("tasks") else {}
    return request.settings(texts=texts, tasks=used, **sections)


def really(settings: CompressSettings, store: Path) -> None:
    """The stages as a run calls them, without looking first."""
    settings, _ = settled_settings(settings)
    context = Context(LocalStore(store), settings.compute, settings.seed)
    given = resolve.resolve(settings, store)
    evaluation = given.subset(settings.evaluate.texts, settings.evaluate.tasks)
    made = line.smaller(context, given.model, given.texts, settings, evaluation.texts.values())
    assert made is not None
    if settings.recover.enabled:
        recover.recover(
            context, made.model, given.texts, settings.recover, evaluation.texts.values()
        )
    evaluate.evaluate(context, made.model, evaluation, settings.evaluate.protocol)
    check_names(settings.promote.name, settings.promote.alias)


def refusal(call: Callable[[], object]) -> tuple[type[BiplineError], str]:
    with pytest.raises(BiplineError) as caught:
        call()
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_the_dry_run_says_what_the_run_would(
    request_of: Request, tmp_path: Path, case: str
) -> None:
    sections, word = CASES[case]
    settings = settings_of(request_of, sections)
    dry = refusal(lambda: line.check(settings, thorough=True))
    assert word in dry[1]
    assert not list(tmp_path.iterdir())
    assert dry == refusal(lambda: really(settings, tmp_path))


@pytest.mark.parametrize(
    "model", ["models:/unknown@candidate", "/nonexistent/model", "s3-model:/x/y"]
)
def test_a_model_that_cannot_be_had_is_refused_before_anything(
    request_of: Request, model: str
) -> None:
    settings = request_of.settings(model=model)
    with pytest.raises(InvalidInput):
        line.check(settings, thorough=True)
    assert not (request_of.folder / "state").exists()
