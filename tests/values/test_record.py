"""Records: each says on which device it was measured, and those that did not are still read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bipline.storage.stage_key import library_versions, processor
from bipline.values.record import EvaluationRecord, device_name, environment

OLD_ENVIRONMENT = {"processor": "a processor", "threads": 2, "python": "3.11.2", "torch": "2.9.0"}


def record(measured_with: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "tensor_digest": "ab" * 32,
        "parameters": 10,
        "file_bytes": 20,
        "perplexity": {"eval": {"value": 1.0, "nll": 0.0, "tokens": 7}},
        "tasks": {},
        "speed": None,
        "protocol": {"seqlen": 16},
        "environment": measured_with,
    }


@pytest.mark.parametrize("measured_with", [OLD_ENVIRONMENT, environment()], ids=["old", "new"])
def test_a_record_comes_back(measured_with: dict[str, Any]) -> None:
    read = EvaluationRecord.model_validate(record(measured_with))
    written = read.to_json_value()
    assert written.pop("protocol") == {"seqlen": 16, "digest": read.protocol_digest}
    assert written == {k: v for k, v in record(measured_with).items() if k != "protocol"}


def test_the_environment_names_device_processor_and_libraries() -> None:
    assert environment().items() >= {
        "device": "cpu", "processor": processor(), "threads": torch.get_num_threads(),
        **library_versions(),
    }.items()  # fmt: skip
    assert environment(torch.device("meta"))["device"] == "meta"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 1)])
def test_a_gpu_is_named_by_its_card(
    device: str | torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = {None: "Card A", 1: "Card B"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda asked: cards[asked.index])
    wanted = "Card A" if device == "cuda" else "Card B"
    assert device_name(device) == f"cuda ({wanted})"
    assert environment(device)["device"] == f"cuda ({wanted})"


def test_a_cpu_has_one_name() -> None:
    assert {device_name(each) for each in ("cpu", "cpu:0", torch.device("cpu"))} == {"cpu"}
