"""What steps are said to need: which there are, what grows with what, and what a GPU takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.compression.gradient_sums import gradient_need
from bipline.model.floor import Rates
from bipline.model.opening import open_checkpoint
from bipline.settings.compress import CompressSettings
from bipline.settings.pools import NodePool
from bipline.stages.step_needs import LIBRARIES, step_needs
from bipline.values.need import StepNeed
from pipelines.placement import checkpoint_of, places, told_places
from tests.pipeline.conftest import TEXTS, configuration, write_text

SLOW, QUICK = Rates(1e6, 1e6, 1e6), Rates(1e7, 1e7, 1e7)
CPU = NodePool(name="cpu", cpus=4, memory=16 * 10**9, price=0.2)
GPU = NodePool(name="gpu", cpus=4, memory=32 * 10**9, price=1.0, gpus=1, gpu_memory=24 * 10**9)


@pytest.fixture
def settings(llama: Path, tmp_path: Path) -> CompressSettings:
    for seed, name in enumerate(TEXTS, start=1):
        write_text(tmp_path / f"{name}.txt", seed)
    return configuration(
        llama, tmp_path, state=None, recover={}, score={"criterion": "llm-bip-glu"}
    )


def changed(settings: CompressSettings, **sections: Any) -> CompressSettings:
    return CompressSettings.model_validate({**settings.model_dump(), **sections})


def needed(settings: CompressSettings, rates: Rates = SLOW) -> dict[str, StepNeed]:
    return step_needs(settings, open_checkpoint(settings.model), rates)


def test_steps_follow_the_settings(settings: CompressSettings) -> None:
    assert list(needed(settings)) == [
        "resolve", "calibrate", "score", "allocate", "prune", "evaluate_dense", "evaluate_pruned",
        "export", "promote",
    ]  # fmt: skip
    parts = changed(settings, score={"criterion": "llm-bip-glu", "parts": 2})
    assert list(needed(parts))[2:5] == ["score_part_1", "score_part_2", "score"]
    weights = changed(settings, score={"criterion": "magnitude"})
    assert "calibrate" not in needed(weights)


def test_more_windows_need_more(settings: CompressSettings) -> None:
    few, many = (
        needed(changed(settings, calibrate={"samples": samples, "seqlen": 16}))["score"]
        for samples in (8, 800)
    )
    assert few.memory < many.memory and few.disk < many.disk and few.seconds < many.seconds


def test_gradients_need_what_they_keep(settings: CompressSettings) -> None:
    """A pod that is given a forward pass's memory for a backward pass is killed."""
    checkpoint = open_checkpoint(settings.model)
    forward = needed(settings)["score"]
    kept = gradient_need(checkpoint, torch.float32, (8, 16), LIBRARIES)
    learned = settings.allocate.model_copy(update={"allocation": "threshold"})
    assert needed(changed(settings, allocate=learned))["allocate"].memory == kept.total
    for criterion in ("llm-pruner", "policy-gradient"):
        backward = needed(changed(settings, score={"criterion": criterion}))["score"]
        assert backward.memory == kept.total > forward.memory
        assert backward.disk > forward.disk and backward.seconds > 2 * forward.seconds


def test_quicker_machines_need_less_time_and_no_less_memory(settings: CompressSettings) -> None:
    for slow, quick in zip(
        needed(settings).values(), needed(settings, QUICK).values(), strict=True
    ):
        assert quick.seconds <= slow.seconds and quick.memory == slow.memory >= LIBRARIES


def test_a_gpu_only_where_it_may_be_used(settings: CompressSettings) -> None:
    checkpoint = checkpoint_of(settings)

    def on_gpus(device: str, *pools: NodePool) -> set[str]:
        chosen = changed(settings, compute={"device": device})
        found = places(chosen, checkpoint, pools)
        return {name for name, place in found.items() if place.pool is GPU}

    runs = {"score", "evaluate_dense", "evaluate_pruned"}
    assert on_gpus("cpu", CPU, GPU) == set() == on_gpus("auto", CPU)
    assert on_gpus("auto", CPU, GPU) == runs == on_gpus("cuda", CPU, GPU)
    with pytest.raises(InvalidInput, match="step score needs a GPU and the stack has no pool"):
        on_gpus("cuda", CPU)


def test_what_is_told_before_a_run(settings: CompressSettings) -> None:
    here = dict(told_places(settings, ()))
    assert here["score"].startswith("memory ") and "about" in here["score"]
    there = dict(told_places(settings, (CPU, GPU)))
    assert there["score"].endswith("on gpu") and there["prune"].endswith("on cpu")
    assert "dollars" in there["all steps"]


def test_a_header_that_is_not_known(settings: CompressSettings) -> None:
    registered = settings.model_copy(update={"model": "models:/tiny@production"})
    assert told_places(registered, ()) == []
    with pytest.raises(InvalidInput, match="its header is not known before the run"):
        checkpoint_of(registered)
