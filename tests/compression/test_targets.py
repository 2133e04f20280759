"""Targets: what a plan comes to is counted as it is written, met, and missed by one step more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate, choices_for
from bipline.compression.allocation.target import Target, _wider
from bipline.compression.allocation.widths import Widths
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import prune
from bipline.compression.score import compute_scores
from bipline.compression.statistics import empty_statistics
from bipline.compression.written import plan_of, written_bytes, written_parameters
from bipline.delivery.formats.gguf.format import FILE
from bipline.model.opening import open_checkpoint
from bipline.settings.line import AllocateSettings, LineSettings
from bipline.settings.loading import validated
from bipline.stages.targets import target_of, with_ratio
from bipline.values.plan import PruningPlan
from tests.command import run
from tests.delivery.test_gguf import written as write_gguf
from tests.tiny import tiny_model

LAYOUTS = ("uniform", "per-layer")


def shards(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def plan_for(
    model: Path, criterion: str = "random", **asked: Any
) -> tuple[PruningPlan, Target, list[Widths], Any]:
    """The plan of drawn or other scores, its target, its widths and what blocks may keep."""
    checkpoint = open_checkpoint(model)
    given_ = AllocateSettings(allocation="uniform", **asked)
    target, section = target_of(checkpoint, given_), with_ratio(checkpoint, given_)
    assert target
    scores = compute_scores(checkpoint, empty_statistics(checkpoint), criterion, Options())
    plan = allocate(checkpoint, scores, section, 0, None, target)
    widths = [Widths.of(block) for block in plan.blocks]
    return plan, target, widths, choices_for(checkpoint, section)


def ends(model: Path, measure: Any, **asked: Any) -> tuple[int, int]:
    """What the narrowest and the widest model come to."""
    choices = choices_for(open_checkpoint(model), AllocateSettings(**asked))
    narrow = [Widths(each.attention_groups[0], each.ffn_units[0]) for each in choices]
    wide = [Widths(each.attention_groups[-1], each.ffn_units[-1]) for each in choices]
    return measure(narrow), measure(wide)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_counted_is_what_is_written(
    family_model: Path, layout: Any, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(family_model)
    shape = checkpoint.shape
    widths = [Widths(shape.num_key_value_heads, 24)] * shape.num_hidden_layers
    plan = plan_of(widths, layout, shape)
    plan = plan.model_copy(update={"tensor_digest": checkpoint.tensor_digest})
    try:
        manifest = prune(checkpoint, plan, tmp_path / "out")
    except InvalidInput:
        return  # no class holds it; what a family holds is tested elsewhere
    assert written_bytes(checkpoint, widths, layout) == shards(tmp_path / "out")
    assert written_parameters(checkpoint, widths, layout) == manifest.info["parameters"]


@pytest.mark.parametrize(("case", "queries"), [("mixtral", None), ("llama-gqa", 1)])
def test_whole_experts_and_query_heads_are_counted_too(
    case: str, queries: int | None, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_model(tmp_path / "model", case))
    shape = checkpoint.shape
    widths = [Widths(shape.num_key_value_heads, 5, queries)] * shape.num_hidden_layers
    plan = plan_of(widths, "uniform", shape)
    plan = plan.model_copy(update={"tensor_digest": checkpoint.tensor_digest})
    manifest = prune(checkpoint, plan, tmp_path / "out")
    assert written_bytes(checkpoint, widths, "uniform") == shards(tmp_path / "out")
    assert written_parameters(checkpoint, widths, "uniform") == manifest.info["parameters"]


@pytest.mark.parametrize("type_", ["hf", "gguf:f32"])
def test_query_heads_meet_a_target(type_: str, tmp_path: Path) -> None:
    """What is counted is what is written, and a step of any kind more would be too much."""
    model = tiny_model(tmp_path / "m", "llama-gqa", hidden_size=64, intermediate_size=256)
    bytes_each = 8 if type_ == "hf" else 4
    asked = bytes_each * int(0.8 * open_checkpoint(model).parameters) + 16_000
    plan, target, widths, choices = plan_for(
        model, target_size=asked, target_format=type_, ffn_multiple=4,
        criterion="magnitude", allocation_option={"attention": "query-heads"},
    )  # fmt: skip
    assert {each.queries_per_group for each in widths} == {1}
    manifest = prune(open_checkpoint(model), plan, tmp_path / "out")
    assert target.measure(widths) <= asked
    assert (
        written_parameters(open_checkpoint(model), widths, "uniform")
        == (manifest.info["parameters"])
    )
    assert all(target.measure(step) > asked for step in _wider(choices, widths, True))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), layout=st.sampled_from(LAYOUTS), name=st.sampled_from(
    ("target_parameters", "target_size")), multiple=st.sampled_from((1, 4)))  # fmt: skip
def test_the_largest_plan_below_the_target(
    llama: Path, share: float, layout: Any, name: str, multiple: int
) -> None:
    checkpoint = open_checkpoint(llama)
    counted = {"target_parameters": written_parameters, "target_size": written_bytes}[name]

    def measure(widths: Sequence[Widths]) -> int:
        return counted(checkpoint, widths, layout)

    least, most = ends(llama, measure, ffn_multiple=multiple)
    asked = int(least + share * (most - 1 - least))
    given_ = {"layout": layout, "ffn_multiple": multiple, name: asked}
    _, target, widths, choices = plan_for(llama, **given_)
    assert measure(widths) <= asked
    for step in _wider(choices, widths, layout == "uniform"):
        assert target.measure(step) > asked


def test_the_exported_file_meets_the_target(llama: Path, tmp_path: Path) -> None:
    least, most = ends(llama, partial(written_bytes, open_checkpoint(llama), layout="uniform"))
    asked = (least + most) // 2
    plan, *_ = plan_for(llama, target_size=asked, ffn_multiple=1)
    prune(open_checkpoint(llama), plan, tmp_path / "out")
    assert shards(tmp_path / "out") <= asked
    assert plan.notes[-1] == f"target_size: at most {asked:,}"


@pytest.mark.parametrize("type_", ["f32", "q8_0"])
def test_a_gguf_meets_its_target(type_: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", "llama-gqa", hidden_size=64, intermediate_size=256)
    whole = written_parameters(
        open_checkpoint(model), [Widths(4, 256)] * 2, "uniform"
    ) * {"f32": 4, "q8_0": 34 / 32}[type_]  # fmt: skip
    asked = int(0.8 * whole) + 16_000
    plan, target, widths, choices = plan_for(
        model, target_size=asked, target_format=f"gguf:{type_}", ffn_multiple=32
    )
    prune(open_checkpoint(model), plan, tmp_path / "out")
    write_gguf(tmp_path / "out", tmp_path / "gguf", type_)
    size = (tmp_path / "gguf" / FILE).stat().st_size
    assert 0 <= target.measure(widths) - size < 1500 and size <= asked
    assert all(target.measure(step) > asked for step in _wider(choices, widths, True))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"target_parameters": 1}, ("target_parameters 1 is out of reach: the smallest",)),
        ({"target_parameters": 10**9}, ("the model itself has",)),
        ({"target_size": 1}, ("target_size 1 is out of reach",)),
    ],
)
def test_a_target_out_of_reach_says_what_is_in_reach(
    llama: Path, asked: Any, words: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan_for(llama, **asked)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--ratio", "0.2", "--target-size", "1MB"), ("ratio and target_size: give one of",)),
        (("--target-parameters", "1M", "--target-size", "1MB"), ("give one of ratio",)),
        (("--target-parameters", "many"), ("'many' is not a count; write a whole number",)),
        (("--target-size", "big"), ("'big' is not a size",)),
        (("--ratio", "0.2", "--target-format", "hf"), ("target_format says what target_size",)),
        (("--target-size", "1MB", "--target-format", "gguf:q9"), ("give hf, or gguf:TYPE",)),
        (("--target-size", "1KB", "--criterion", "magnitude"), ("out of reach",)),
    ],
)
def test_what_is_asked_wrongly_is_one_line(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path, flags: Any, words: Any
) -> None:
    outcome = run(capfd, "prune", llama, "--out", tmp_path / "out", *flags)
    outcome.assert_one_line(2, *words)


def test_prune_meets_a_target_and_a_round_trip_keeps_it(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path
) -> None:
    least, most = ends(llama, partial(written_parameters, open_checkpoint(llama), layout="uniform"))
    asked = (least + most) // 2
    outcome = run(
        capfd, "prune", llama, "--out", tmp_path / "out", "--criterion", "magnitude",
        "--target-parameters", str(asked),
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert least < open_checkpoint(tmp_path / "out").parameters <= asked
    given_ = LineSettings.model_validate({"model": "m", "allocate": {"target_size": "0.5GiB"}})
    again = validated(LineSettings, given_.model_dump())
    assert again == given_ and again.allocate.target_size == 2**29
    assert AllocateSettings(target_parameters="1.2B").target_parameters == 1_200_000_000
