"""What cannot be done with a mixture of experts is refused in one line, with what can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import ALLOCATIONS
from bipline.compression.criteria import CRITERIA, check_scores_experts
from bipline.face import api
from bipline.model.opening import open_checkpoint
from bipline.model.shapes import shape_of
from bipline.recovery.recover import check_teacher
from bipline.settings.recipes import FullRecipe, LoraRecipe
from tests.tiny import config_of, tiny_model

ABLE = {
    "block-influence", "block-shapley", "llm-bip", "llm-bip-glu", "magnitude", "random", "wanda-sp",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("refused") / "model", "mixtral")


@pytest.fixture
def pruned(model: Path, tmp_path: Path) -> Callable[..., Any]:
    text = tmp_path / "text.txt"
    text.write_text("It rained, and nobody minded. " * 60)
    chosen: dict[str, Any] = {"criterion": "random", "ratio": 0.2, "samples": 8, "seqlen": 16}

    def prune(out: str = "out", **given: Any) -> Any:
        asked = chosen | given
        if "plan" in given:
            del asked["ratio"]
        return api.prune(model, tmp_path / out, calibration=text, state=tmp_path / "state", **asked)

    return prune


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_a_criterion_scores_experts_or_names_those_that_do(criterion: str) -> None:
    shape = shape_of(config_of("mixtral"))
    if criterion in ABLE:
        check_scores_experts(criterion, shape)
        return
    with pytest.raises(InvalidInput, match=rf"criterion {criterion} scores no experts.*llm-bip,"):
        check_scores_experts(criterion, shape)
    check_scores_experts(criterion, shape_of(config_of()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"criterion": "flap"}, "criterion flap scores no experts"),
        (
            {"criterion": "auto", "allocation": "compensated"},
            "allocation compensated .* uniform; with auto name .* least-squares",
        ),
        ({"criterion": "auto", "compensation": "obs"}, "use compensation least-squares"),
        ({"criterion": "auto", "layout": "per-layer"}, "use the uniform layout"),
        *(
            ({"allocation": each}, f"allocation {each} cannot say how many experts stay")
            for each in sorted(set(ALLOCATIONS) - {"uniform", "standardized", "depth"})
        ),
        ({"compensation": "bias"}, "compensation bias is of o_proj and of one down_proj"),
        ({"compensation": "slimgpt"}, "use compensation least-squares"),
        (
            {"compensation": "least-squares", "compensation_option": {"bias": "on"}, "samples": 22},
            "MixtralForCausalLM has no bias at o_proj",
        ),
        ({"compensation": "least-squares"}, "experts that see 2 of 8 tokens .* least 22 samples"),
        ({"layout": "per-layer"}, "use the uniform layout"),
        ({"ratio": 0.8}, "each token passes through 2 experts"),
        ({"ffn_multiple": 8}, "of this model whole experts go"),
        ({"of_experts": "some"}, "of-experts 'some'"),
        *(
            ({"of_experts": "channels", "allocation": each}, "every expert stay; .* uniform")
            for each in sorted(set(ALLOCATIONS) - {"uniform", "depth"})
        ),
        (
            {"of_experts": "channels", "criterion": "block-influence"},
            "allocation depth cannot say how many channels of every expert stay",
        ),
        ({"of_experts": "channels", "criterion": "flap"}, "criterion flap scores no experts"),
        ({"of_experts": "channels", "layout": "per-layer"}, "use the uniform layout"),
        ({"of_experts": "channels", "compensation": "bias"}, "compensation bias is of o_proj"),
        ({"of_experts": "channels", "ratio": 0.99}, "cannot be reached with uniform widths; the l"),
        ({"of_experts": "channels", "ffn_multiple": 96}, "must lie between 1 and 40"),
        ({"of_experts": "channels", "ffn_multiple": 4}, "go in multiples of 8, because transf"),
    ],
)
def test_a_refusal_says_what_to_do(
    pruned: Callable[..., Any], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as refusal:
        pruned(**given)
    assert "\n" not in str(refusal.value)


def test_a_plan_keeps_as_many_experts_as_a_token_needs(
    pruned: Callable[..., Any], tmp_path: Path
) -> None:
    pruned(plan_out=tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    for change, said in (
        ({"experts": [3]}, "keeps 1 experts of block 0, and every token passes through 2"),
        ({"experts": [3, 8]}, "an expert that block 0 does not have"),
        ({"experts": [], "ffn_channels": [0, 1]}, "an FFN channel that block 0 does not have"),
    ):
        blocks = [{**block, **change} for block in plan["blocks"]]
        (tmp_path / "changed.json").write_text(json.dumps({**plan, "blocks": blocks}))
        with pytest.raises(InvalidInput, match=said):
            pruned("again", plan=str(tmp_path / "changed.json"))


def test_a_plan_of_channels_is_of_channels_that_are_there(
    pruned: Callable[..., Any], tmp_path: Path
) -> None:
    pruned(plan_out=tmp_path / "plan.json", of_experts="channels")
    plan = json.loads((tmp_path / "plan.json").read_text())
    (first, *_), _ = held = [block["expert_channels"] for block in plan["blocks"]]
    for change, said in (
        ([[*first[:-1], 40], *held[0][1:]], "keeps a channel that no expert of block 0 has"),
        ([each[:-8] for each in held[0]], "blocks differ in width"),
        ([each[:-1] for each in held[0]], "of every expert of block 0; keep a multiple of 8"),
    ):
        blocks = [{**plan["blocks"][0], "expert_channels": change}, plan["blocks"][1]]
        (tmp_path / "changed.json").write_text(json.dumps({**plan, "blocks": blocks}))
        with pytest.raises(InvalidInput, match=said):
            pruned("again", plan=str(tmp_path / "changed.json"))
    asked = {**plan["blocks"][0], "shared_channels": [0]}
    blocks = [asked, plan["blocks"][1]]
    (tmp_path / "changed.json").write_text(json.dumps({**plan, "blocks": blocks}))
    with pytest.raises(InvalidInput, match="no expert of block 0 has"):
        pruned("again", plan=str(tmp_path / "changed.json"))


def test_training_that_knows_no_experts_says_so(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    with pytest.raises(InvalidInput, match="recipe full trains every weight, and of a mixture"):
        check_teacher(checkpoint, None, FullRecipe())
    check_teacher(checkpoint, None, LoraRecipe())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mlp_only_layers": [0]}, "leave blocks without experts beside"),
        ({"decoder_sparse_step": 2}, "leave blocks without experts beside"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ({"num_local_experts": 0}, "num_experts is 0"),
    ],
)
def test_a_config_that_is_no_mixture_throughout_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    model = tiny_model(tmp_path / "model", "qwen3-moe")
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidInput, match=said):
        open_checkpoint(model)
