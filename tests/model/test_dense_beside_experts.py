"""Mixtures of experts whose first blocks have none: what stays, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import InvalidInput
from bipline.compression.allocate import allocate
from bipline.compression.criteria.interface import Options
from bipline.compression.prune import check_budget, check_plan, prune
from bipline.compression.score import compute_scores, empty_statistics
from bipline.delivery.card import removed_text
from bipline.model.block_loop import BlockLoop
from bipline.model.families import with_blocks
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import shape_of
from bipline.settings.line import AllocateSettings, LineSettings, ScoreSettings
from bipline.stages.allocate import check
from bipline.stages.targets import with_ratio
from bipline.values.plan import PruningPlan
from tests.scored import scored
from tests.tiny import config_of, tiny_model, token_windows

LAYERS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("beside") / "model", "glm4-moe", dtype=torch.float32)


def plan_of(model: Path, **asked: Any) -> PruningPlan:
    checkpoint = open_checkpoint(model)
    scores = compute_scores(checkpoint, empty_statistics(checkpoint), "random", Options())
    return allocate(checkpoint, scores, AllocateSettings(**{"ratio": 0.2, **asked}), 0)


def test_the_sizes_are_those_of_transformers_tensors(model: Path) -> None:
    """The linear weights that a ratio is a share of, and those that a token passes through."""
    checkpoint = open_checkpoint(model)
    shape, held = checkpoint.shape, load_file(model / "model.safetensors")
    linear = {n: t for n, t in held.items() if t.dim() == 2 and ".layers." in n}
    assert shape.linear_weights == sum(each.numel() for each in linear.values())
    idle = [n for n in linear if ".experts." in n and int(n.split(".")[5]) >= 2]
    assert shape.token_weights == shape.linear_weights - sum(linear[n].numel() for n in idle)


@pytest.mark.parametrize("allocation", ["uniform", "standardized"])
def test_a_ratio_is_met_by_experts_alone(model: Path, allocation: str) -> None:
    """To less than one expert of every block that has some; a plan that is read is held to it."""
    plan, shape = plan_of(model, allocation=allocation), open_checkpoint(model).shape
    dense, *others = plan.blocks
    assert dense.ffn_channels == tuple(range(40)) and not dense.experts
    [kept] = {len(block.experts) for block in others}
    assert {len(block.attention_groups) for block in plan.blocks} == {4}
    gone = (8 - kept) * len(others) * shape.ffn_unit_weights
    step = len(others) * shape.ffn_unit_weights
    assert gone - step < 0.2 * shape.linear_weights <= gone
    assert plan.budget.reached_blocks == gone / shape.linear_weights
    check_budget(open_checkpoint(model), plan)
    assert any("the first 1 have no experts" in note for note in plan.notes)


def test_channels_of_every_expert_meet_a_ratio_and_what_all_share_loses_as_many(
    model: Path, tmp_path: Path
) -> None:
    """To less than one step; the first block stays whole, and the card tells what is left."""
    checkpoint = open_checkpoint(model)
    shape = checkpoint.shape
    plan = plan_of(model, of_experts="channels")
    dense, *others = plan.blocks
    assert dense.ffn_channels == tuple(range(40)) and not dense.expert_channels
    [kept] = {len(held) for block in others for held in block.expert_channels}
    assert [len(block.shared_channels) for block in others] == [2 * kept] * 2
    gone = (24 - kept) * (8 + 2) * len(others) * shape.channel_weights
    step = plan.ffn_multiple * 10 * len(others) * shape.channel_weights
    assert gone - step < 0.2 * shape.linear_weights <= gone
    assert plan.budget.reached_blocks == gone / shape.linear_weights
    told = removed_text(plan, (4, 24))
    assert f"and {kept} of 24 channels of every expert, of which a block has 8; the first 1" in told
    prune(checkpoint, plan, tmp_path / "pruned")
    held = load_file(tmp_path / "pruned" / "model.safetensors")
    assert sum(each.numel() for each in held.values()) == checkpoint.parameters - gone
    most = checkpoint.parameters - 100
    fitted = with_ratio(checkpoint, AllocateSettings(target_parameters=most, of_experts="channels"))
    assert fitted.ratio * shape.linear_weights <= 2 * step
    fewer = (b.model_copy(update={"shared_channels": b.shared_channels[1:]}) for b in others)
    cut = plan.model_copy(update={"blocks": (dense, *fewer)})
    with pytest.raises(InvalidInput, match="of what all tokens share in block 1, and its class h"):
        check_plan(checkpoint, cut)


def test_what_is_out_of_reach_is_told_with_what_is_not(model: Path) -> None:
    """The largest ratio that is named can be asked for."""
    with pytest.raises(InvalidInput, match="the largest that can is ") as refusal:
        plan_of(model, ratio=0.9)
    largest = float(str(refusal.value).rpartition(" ")[2])
    assert {len(block.experts) for block in plan_of(model, ratio=largest).blocks[1:]} == {2}


def test_blocks_that_go_whole_leave_the_others_their_kind(model: Path, tmp_path: Path) -> None:
    """Of the blocks with experts one goes; a config without the first ones has fewer without."""
    checkpoint = open_checkpoint(model)
    scores = scored(model, "block-influence")[1]
    prune(checkpoint, allocate(checkpoint, scores, AllocateSettings(ratio=0.2), 0), tmp_path / "p")
    shorter = open_checkpoint(tmp_path / "p").shape
    assert (shorter.num_hidden_layers, shorter.dense_blocks, shorter.num_experts) == (2, 1, 8)
    assert shape_of(with_blocks(checkpoint.config, [1, 2])).dense_blocks == 0
    with pytest.raises(InvalidInput, match="none of 1 blocks has experts"):
        shape_of(with_blocks(checkpoint.config, [0]))


def test_a_plan_that_cuts_a_block_without_experts_is_refused(model: Path) -> None:
    checkpoint, plan = open_checkpoint(model), plan_of(model)
    dense, *others = plan.blocks
    for change, said in (
        ({"ffn_channels": (0, 1)}, "keeps 2 of 40 FFN channels of block 0, which has no experts"),
        ({"ffn_channels": (), "experts": (0, 1)}, "an expert that block 0 does not have"),
        ({"attention_groups": (0,)}, "blocks differ in width"),
    ):
        blocks = (dense.model_copy(update=change), *others)
        with pytest.raises(InvalidInput, match=said):
            check_plan(checkpoint, plan.model_copy(update={"blocks": blocks}))


def test_blocks_that_guess_later_tokens_are_left_out(model: Path, tmp_path: Path) -> None:
    """And told; the smaller model's config counts none. Others behind the last are not known."""
    source = tmp_path / "source"
    source.mkdir()
    held = load_file(model / "model.safetensors")
    behind = {f"model.layers.{LAYERS}.eh_proj.weight": torch.ones(2, 2)}
    save_file({**held, **behind}, source / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    for count in (1, 0):
        config["num_nextn_predict_layers"] = count
        (source / "config.json").write_text(json.dumps(config))
        if count:
            checkpoint, windows = open_checkpoint(source), token_windows(2, 12)
            expected = BlockLoop(open_checkpoint(model)).logits(windows)
            assert BlockLoop(checkpoint).logits(windows).equal(expected)
            with torch.no_grad():
                loaded = load_model(source, torch.float32)(windows).logits
            torch.testing.assert_close(loaded, expected, rtol=1e-4, atol=1e-4)
            prune(checkpoint, plan_of(source), tmp_path / "pruned")
            pruned = open_checkpoint(tmp_path / "pruned")
            assert pruned.config["num_nextn_predict_layers"] == 0
            assert not [name for name in pruned.tensors if f".{LAYERS}." in name[:16]]
            continue
        with pytest.raises(InvalidInput, match=r"eh_proj\.weight does not belong"):
            open_checkpoint(source)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_group": 2}, "n_group is 2, not"),
        ({"topk_group": 2}, "topk_group is 2, not"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1, not"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace is 3, and none of 3 blocks has"),
        ({"n_shared_experts": 0}, "n_shared_experts is 0, not"),
        ({"use_qk_norm": False}, "k_norm.weight does not belong"),
    ],
)
def test_a_config_of_another_mixture_is_refused(
    model: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    shutil.copy(model / "model.safetensors", tmp_path)
    config = {**json.loads((model / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match=said) as refusal:
        open_checkpoint(tmp_path)
    assert "\n" not in str(refusal.value)


def test_the_first_screen_tells_what_stays(model: Path) -> None:
    asked = LineSettings(
        model=str(model), allocate=AllocateSettings(ratio=0.2, allocation="uniform"),
        score=ScoreSettings(criterion="llm-bip"),
    )  # fmt: skip
    [(_, text)] = check(asked, open_checkpoint(model), False)
    assert "of 8 experts in every block but the first 1, which stay whole" in text
    channels = asked.allocate.model_copy(update={"of_experts": "channels"})
    asked = asked.model_copy(update={"allocate": channels})
    [(_, text)] = check(asked, open_checkpoint(model), False)
    assert "of 24 channels of every expert in every block but the first 1, which" in text


def test_models_without_experts_are_counted_as_ever() -> None:
    shape = shape_of(config_of())
    assert shape.linear_weights == shape.token_weights == 2 * shape.block(1).block_weights
