"""Speed: models take turns, spreads are told, factors only where ranges are apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bipline.model.opening import open_checkpoint
from bipline.quality.speed import Sample, measure_speed, prompts_of, summary, taken_turns
from bipline.quality.speed_remarks import remarks, tile
from bipline.settings.protocol import Protocol
from bipline.values.record import EvaluationRecord
from bipline.values.speed import FEWEST, Speed, Spread
from tests.tiny import tiny_model

RATES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9)
SHORT = Protocol(
    speed=True, speed_prompt_tokens=8, speed_decoded_tokens=2, speed_repeats=3, speed_batch=2
)
OLD = {
    "prefill_tokens_per_second": 100.0, "prefill_median_tokens_per_second": 90.0,
    "decode_tokens_per_second": 10.0, "decode_median_tokens_per_second": 9.0, "batch_size": 1,
    "prompt_tokens": 128, "decoded_tokens": 32, "repeats": 5,
}  # fmt: skip


class Recorder:
    """A subject that takes known seconds and tells when it was asked."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def sample(self, prompts: torch.Tensor, decoded_tokens: int) -> Sample:
        self.log.append((self.name, len(prompts)))
        return Sample(self.seconds, 2 * self.seconds)


def test_no_model_has_two_repeats_more_than_another() -> None:
    log: list[tuple[str, int]] = []
    subjects = {name: Recorder(name, 1.0, log) for name in ("dense", "pruned", "recovered")}
    batches = [prompts_of(size, 8, 96) for size in (1, 4)]
    found = taken_turns(subjects, batches, 2, 5)
    assert all([len(each) for each in of] == [5, 5] for of in found.values())
    for size in (1, 4):
        order = [name for name, batch in log if batch == size]
        rounds = [order[at : at + 3] for at in range(0, len(order), 3)]
        assert all(set(each) == set(subjects) for each in rounds)
        assert {each[0] for each in rounds} == {"dense", "recovered"}, "no model is always first"


def test_rates_are_of_all_sequences_together() -> None:
    batches = [prompts_of(1, 8, 96), prompts_of(2, 8, 96)]
    samples = [[Sample(1.0, 2.0), Sample(2.0, 4.0), Sample(4.0, 8.0)]] * 2
    told = summary(samples, batches, SHORT, ["model"])
    repeats = told.repeats
    assert told.prefill == Spread(median=4.0, lower=2.0, upper=8.0, best=8.0, count=repeats)
    assert told.filled is not None and told.filled.batch_size == 2
    assert told.filled.prefill.median == 8.0
    assert told.filled.decode.best == 2.0
    first = Spread(median=2.0, lower=1.0, upper=4.0, best=1.0, count=3)
    assert told.first_token_seconds == first
    assert told.taking_turns is None


@given(one=RATES, other=RATES)
def test_a_factor_is_told_only_of_ranges_that_are_apart(
    one: list[float], other: list[float]
) -> None:
    spread, dense = Spread.of(one), Spread.of(other)
    assert min(one) <= spread.lower <= spread.median <= spread.upper <= spread.best
    factor = spread.factor_over(dense)
    apart = spread.lower > dense.upper or spread.upper < dense.lower
    assert (factor is not None) == (apart and min(len(one), len(other)) >= FEWEST)
    if factor:
        assert factor.lower <= factor.median <= factor.upper
        assert (factor.lower > 1) == (spread.lower > dense.upper)


def test_models_in_memory_are_timed_and_weighed(tmp_path: Path) -> None:
    models = {
        name: open_checkpoint(tiny_model(tmp_path / name, "llama-gqa", intermediate_size=size))
        for name, size in (("dense", 40), ("pruned", 20))
    }
    speeds = measure_speed(models, SHORT, torch.device("cpu"))
    assert list(speeds) == ["dense", "pruned"]
    for name, speed in speeds.items():
        assert speed.taking_turns == ("dense", "pruned")
        assert speed.prefill.lower > 0 and speed.decode.lower > 0
        assert speed.load_seconds is not None and speed.load_seconds > 0
        assert speed.peak_memory_bytes is not None
        assert speed.peak_memory_bytes >= 4 * models[name].parameters
    assert speeds["dense"].remarks is None


def test_what_explains_a_model_that_is_not_faster(tmp_path: Path) -> None:
    same = Speed.model_validate(OLD)
    dense = open_checkpoint(tiny_model(tmp_path / "dense", "llama-gqa", intermediate_size=64)).shape
    pruned = open_checkpoint(
        tiny_model(tmp_path / "pruned", "llama-gqa", intermediate_size=40)
    ).shape
    said = "\n".join(remarks(dense, pruned, same, same))
    assert "prefill is not told to be faster" in said and "times the speed" in said
    assert "width 40 (FFN channels) is no multiple of 16, the dense one of 64" in said
    assert "hidden size 32" in said
    head = dense.model_copy(update={"vocab_size": 10**6})
    assert any("vocabulary head is 9" in each for each in remarks(head, head, same, same))
    faster = same.model_copy(
        update=dict.fromkeys(("prefill_quartiles", "decode_quartiles"), (200.0, 300.0))
    )
    assert remarks(dense, pruned, same, faster) == ()


@pytest.mark.parametrize(("width", "expected"), [(128, 64), (96, 32), (48, 16), (100, 1), (0, 64)])
def test_a_tile_divides_a_width(width: int, expected: int) -> None:
    assert tile(width) == expected


def test_an_older_speed_stays_readable_and_keeps_its_bytes() -> None:
    speed = Speed.model_validate(OLD)
    assert speed.model_dump(mode="json") == OLD
    assert speed.prefill == Spread(
        median=90.0, lower=90.0, upper=100.0, best=100.0, count=speed.repeats
    )
    record = EvaluationRecord(
        tensor_digest="0", parameters=1, file_bytes=1, speed=speed, protocol={}, environment={}
    )
    assert EvaluationRecord.model_validate_json(record.model_dump_json()) == record


def test_a_filled_batch_of_the_usual_size_changes_no_digest() -> None:
    assert "speed_batch" not in Protocol().described({}, {})
    assert Protocol(speed_batch=2).described({}, {})["speed_batch"] == 2
