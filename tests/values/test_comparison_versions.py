"""Comparisons of the first schema version are read, and keep their digests."""

from __future__ import annotations

import json
from typing import Any

from bipline.storage.digests import digest_json
from bipline.values.combination import Choice
from bipline.values.comparison import Comparison, Outcome

# What the first version wrote, and its digests then.
COMPARISON = "6ecbfd68485e9a292ace91d4d5fa8284c6b5c6a0a906b6068c12821c6de962a1"
OUTCOME = "426487322b59018527eb43d04c7b2b21a54bf9ffcc7b67519470a792ba35484a"
RECORD: dict[str, Any] = {
    "schema_version": 1, "tensor_digest": "0" * 64, "parameters": 1000, "file_bytes": 8000,
    "perplexity": {"one": {"value": 50.0, "nll": 0.5, "tokens": 90}}, "tasks": {}, "speed": None,
    "protocol": {"seqlen": 16}, "environment": {"processor": "x"},
}  # fmt: skip
MEASURED: dict[str, Any] = {
    "plan_digest": "p", "tensor_digest": "t", "protocol_digest": "d",
    "parameters": {"before": 1000, "after": 800},
    "ratio": {"asked": 0.2, "of": "blocks", "reached_blocks": 0.2, "reached_total": 0.1},
    "widths": [[2, 8]], "file_bytes": 4000,
    "perplexity": {"one": {"value": 60.0, "nll": 0.6, "tokens": 90}},
    "change": {"one": {"nll": 0.1, "perplexity": 10.0}},
}  # fmt: skip


def cost(**seconds: float) -> dict[str, Any]:
    peaks = {"peak_anonymous_bytes": 0, "peak_device_bytes": 0}
    return {"seconds": seconds, **peaks, "sums_from": None}


def row(ratio: float, **outcome: Any) -> dict[str, Any]:
    combination = {
        "model": "llama", "calibration": "books",
        "criterion": {"name": "flap", "options": {"metric": "ifv"}},
        "allocation": {"name": "uniform", "options": {}}, "layout": "uniform",
        "compensation": "none", "ratio": ratio, "seed": 0, "ratio_of": "blocks",
        "ffn_multiple": None, "keep_first": 0, "keep_last": 0, "divisible_by": 1,
    }  # fmt: skip
    return {"combination": combination, **outcome, "directory": None}


FIRST: dict[str, Any] = {
    "schema_version": 1,
    "models": {"llama": {"source": "here", "revision": None, "licence": None, "record": RECORD}},
    "calibrations": {"books": {"source": "b", "sha256": "b", "samples": 8, "seqlen": 16}},
    "rows": [
        row(0.2, refusal=None, measured=MEASURED, cost=cost(score=1.0)),
        row(0.9, refusal="it cannot be", measured=None, cost=cost()),
    ],
}


def test_a_comparison_of_the_first_version_is_read() -> None:
    held = Comparison.model_validate_json(json.dumps(FIRST))
    assert [each.combination.compensation for each in held.rows] == [Choice(name="none")] * 2
    assert held.rows[0].combination.label == "flap:metric=ifv, uniform, ratio 0.2, seed 0"
    assert held.digest == digest_json(FIRST) == COMPARISON
    assert Comparison.model_validate_json(held.model_dump_json()).digest == COMPARISON
    newer = held.model_copy(update={"schema_version": 2})
    assert newer.digest != COMPARISON


def test_an_outcome_of_the_first_version_keeps_its_digest() -> None:
    text = json.dumps({"refusal": None, "measured": MEASURED, "cost": cost(score=1.0)})
    assert Outcome.model_validate_json(text).digest == OUTCOME
