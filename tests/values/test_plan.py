"""Plans as files: old versions stay readable, and what is no plan is named in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.values.compensation import CompensationRecord
from bipline.values.plan import BlockPlan, Budget, PruningPlan, read_plan

FIRST_VERSION: dict[str, Any] = {
    "schema_version": 1,
    "tensor_digest": "ab" * 32,
    "criterion": "llm-bip-glu",
    "allocation": "uniform",
    "layout": "uniform",
    "compensation": "none",
    "budget": {"asked": 0.3, "of": "blocks", "reached_blocks": 0.31, "reached_total": 0.2},
    "ffn_multiple": 8,
    "notes": [],
    "blocks": [
        {"attention_groups": [0, 2], "ffn_channels": [1, 2, 5]},
        {"attention_groups": [1, 3], "ffn_channels": [0, 4, 7]},
    ],
}


def test_a_plan_of_the_first_version_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(FIRST_VERSION), encoding="utf-8")
    plan = read_plan(path)
    assert (plan.schema_version, plan.layout, plan.kept_blocks) == (1, "uniform", (0, 1))
    assert [block.widths for block in plan.blocks] == [(2, 3), (2, 3)]
    assert FIRST_VERSION.items() <= json.loads(plan.to_json()).items()


def test_a_new_plan_says_its_version_and_comes_back(tmp_path: Path) -> None:
    plan = PruningPlan(
        tensor_digest="0",
        criterion="random",
        allocation="by hand",
        layout="per-layer",
        budget=Budget(asked=0.5, of="blocks", reached_blocks=0.5, reached_total=0.5),
        ffn_multiple=1,
        blocks=(
            BlockPlan(attention_groups=(), ffn_channels=(3,)),
            BlockPlan(attention_groups=(), ffn_channels=()),
            BlockPlan(attention_groups=(0,), ffn_channels=()),
        ),
    )
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json(), encoding="utf-8")
    assert read_plan(path) == plan
    assert plan.schema_version == 5
    assert plan.kept_blocks == (0, 2)
    assert [block.dropped for block in plan.blocks] == [False, True, False]


def test_a_record_from_before_a_field_keeps_its_text() -> None:
    matrix = {"form": "obs", "ridge": 0.01, "beta": 1.0, "replaced": 3, "errors": {"obs": 0.1}}
    block = {"index": 0, "attention": matrix, "ffn": None, "error_without": 0.2, "error": 0.1}
    value = {
        "options": {"ridge": 0.01},
        "calibration_digest": "0",
        "fitted_tokens": 128,
        "random_tokens": 64,
        "held_out_tokens": 16,
        "asked_plan": "1",
        "corrections": "2",
        "blocks": [block],
    }
    read = CompensationRecord.model_validate_json(json.dumps(value))
    assert read.model_dump(mode="json") == value
    more = read.model_copy(update={"generated_tokens": 64}).model_dump(mode="json")
    assert more == {**value, "generated_tokens": 64}
    assert read.blocks[0].attention is not None
    fitted = read.blocks[0].attention.model_copy(update={"rows_fitted": True})
    assert fitted.model_dump(mode="json") == {**matrix, "rows_fitted": True}
    assert fitted.uncorrected().model_dump(mode="json").keys() == matrix.keys()


@pytest.mark.parametrize("groups", [[1, 0], [0, 0], [-1, 0]])
def test_indices_that_are_no_choice_are_refused(tmp_path: Path, groups: list[int]) -> None:
    blocks = [{"attention_groups": groups, "ffn_channels": [0]}]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**FIRST_VERSION, "blocks": blocks}), encoding="utf-8")
    with pytest.raises(InvalidInput, match="ascending, distinct and not negative"):
        read_plan(path)


def test_a_plan_of_experts_comes_back_and_is_of_the_fourth_version(tmp_path: Path) -> None:
    block = {"attention_groups": [0, 2], "ffn_channels": [], "experts": [1, 4, 5]}
    value = {**FIRST_VERSION, "schema_version": 4, "blocks": [block, block]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    plan = read_plan(path)
    assert [each.widths for each in plan.blocks] == [(2, 3), (2, 3)]
    assert plan.ffn_kind == "experts" and plan.kept_blocks == (0, 1)
    assert json.loads(plan.to_json())["blocks"] == [block, block]
    for change in (
        {"schema_version": 3},
        {"blocks": [{**block, "ffn_channels": [0]}]},
        {"blocks": [{**block, "experts": [4, 1]}]},
    ):
        path.write_text(json.dumps({**value, **change}), encoding="utf-8")
        with pytest.raises(InvalidInput, match="not a pruning plan"):
            read_plan(path)


def test_a_plan_of_query_heads_comes_back_and_is_of_the_fifth_version(tmp_path: Path) -> None:
    block = {"attention_groups": [0, 2], "ffn_channels": [1], "query_heads": [[0, 3], [1, 2]]}
    value = {**FIRST_VERSION, "schema_version": 5, "blocks": [block, block]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    plan = read_plan(path)
    assert [each.queries_per_group for each in plan.blocks] == [2, 2]
    assert json.loads(plan.to_json())["blocks"] == [block, block]
    whole = BlockPlan(attention_groups=(0, 2), ffn_channels=(1,))
    assert whole.queries_per_group is None and "query_heads" not in whole.model_dump()
    for change in (
        {"schema_version": 4},
        {"blocks": [{**block, "query_heads": [[0, 3]]}]},
        {"blocks": [{**block, "query_heads": [[0, 3], [1]]}]},
        {"blocks": [{**block, "query_heads": [[], []]}]},
        {"blocks": [{**block, "query_heads": [[3, 0], [1, 2]]}]},
    ):
        path.write_text(json.dumps({**value, **change}), encoding="utf-8")
        with pytest.raises(InvalidInput, match="not a pruning plan"):
            read_plan(path)


def test_a_plan_of_channels_of_experts_comes_back_and_is_of_the_fifth_version(
    tmp_path: Path,
) -> None:
    """Beside the experts that stay; older plans, which list none, are what they were."""
    block = {
        "attention_groups": [0, 2], "ffn_channels": [], "experts": [1, 4],
        "expert_channels": [[0, 3, 5], [1, 2, 9]], "shared_channels": [2, 3, 4],
    }  # fmt: skip
    value = {**FIRST_VERSION, "schema_version": 5, "blocks": [block, block]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    plan = read_plan(path)
    [widths] = {(each.widths, each.told_widths, each.channels_per_expert) for each in plan.blocks}
    assert widths == ((2, 2), (2, 3), 3)
    assert plan.ffn_kind == "channels of every expert" and plan.counted_blocks == (0, 1)
    assert json.loads(plan.to_json())["blocks"] == [block, block]
    whole = BlockPlan(attention_groups=(0, 2), ffn_channels=(), experts=(1, 4))
    assert whole.model_dump().keys() == {"attention_groups", "ffn_channels", "experts"}
    for change in (
        {"schema_version": 4},
        {"blocks": [{**block, "expert_channels": [[0, 3, 5]]}]},
        {"blocks": [{**block, "expert_channels": [[0, 3, 5], [1, 2]]}]},
        {"blocks": [{**block, "expert_channels": [[], []]}]},
        {"blocks": [{**block, "expert_channels": [[3, 0, 5], [1, 2, 9]]}]},
        {"blocks": [{**block, "expert_channels": []}]},
    ):
        path.write_text(json.dumps({**value, **change}), encoding="utf-8")
        with pytest.raises(InvalidInput, match="not a pruning plan"):
            read_plan(path)


@pytest.mark.parametrize("multiple", [-1, 0, 0.9, "x", None, []])
def test_a_multiple_is_at_least_one(tmp_path: Path, multiple: object) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**FIRST_VERSION, "ffn_multiple": multiple}), encoding="utf-8")
    with pytest.raises(InvalidInput, match="not a pruning plan: ffn_multiple"):
        read_plan(path)


def test_a_version_from_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**FIRST_VERSION, "schema_version": 6}), encoding="utf-8")
    with pytest.raises(InvalidInput, match="not a pruning plan: schema_version"):
        read_plan(path)
