"""Attention beside the FFN: scores are what transformers' own block changes by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bipline.base.errors import InvalidInput
from bipline.compression.allocation import check_measures
from bipline.compression.criteria import needs_of
from bipline.compression.criteria.block_influence import InfluenceOptions, observe, score
from bipline.compression.criteria.needs import SEARCH
from bipline.face import api
from bipline.model.opening import open_checkpoint
from bipline.settings.method_names import ALLOCATIONS, CRITERIA
from bipline.values.plan import PLAN_NAME, read_plan
from tests.observed import observed, scores_of, without_columns
from tests.tiny import tiny_model


@pytest.fixture(scope="module", params=["cohere", "cohere2", "phi", "gpt-neox", "falcon-new"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("parallel") / request.param, request.param)


def test_exact_scores_are_what_the_block_changes_by(model: Path) -> None:
    block, seen, output = observed(model)
    found = {name: scores_of(name, block, seen) for name in ("llm-bip-exact", "llm-bip")}
    for group in range(block.shape.num_key_value_heads):
        columns = slice(group * block.group_width, (group + 1) * block.group_width)
        change = without_columns(model, 1, "self_attn.o_proj.weight", columns) - output
        expected = change.square().sum(1).mean().sqrt()
        exact = found["llm-bip-exact"].attention_groups[group]
        torch.testing.assert_close(exact, expected, rtol=1e-5, atol=0)
        # A bound of it: nothing passes through the FFN.
        assert found["llm-bip"].attention_groups[group] >= expected
    for channel in (0, 7):
        change = without_columns(model, 1, "mlp.down_proj.weight", slice(channel, channel + 1))
        expected = (change - output).square().sum(1).mean().sqrt()
        for scores in found.values():
            torch.testing.assert_close(scores.ffn_channels[channel], expected, rtol=1e-6, atol=0)


def test_the_bound_through_the_gates_is_that_without_an_ffn(model: Path) -> None:
    block, seen, _ = observed(model)
    plain, gated = (scores_of(name, block, seen) for name in ("llm-bip", "llm-bip-glu"))
    torch.testing.assert_close(plain.attention_groups, gated.attention_groups)


def test_drawn_probes_estimate_the_exact_scores(model: Path) -> None:
    block, seen, _ = observed(model)
    exact = scores_of("llm-bip-exact", block, seen).attention_groups
    drawn = scores_of("llm-bip-adjoint", block, seen, probes=64).attention_groups
    torch.testing.assert_close(drawn, exact, rtol=0.1, atol=0)


def test_influence_is_of_all_that_the_block_adds(model: Path) -> None:
    block, seen, output = observed(model)
    options = InfluenceOptions(metric="relative-norm")
    found = score(observe(block, seen, options), block, options).ffn_channels[0]
    before = seen["hidden"]
    expected = ((output - before).norm(dim=1) / before.norm(dim=1)).mean()
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=0)


def test_what_measures_an_ffn_behind_attention_is_refused(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    refused = set()
    for name in ALLOCATIONS:
        try:
            check_measures(name, checkpoint)
        except InvalidInput:
            refused.add(name)
    assert refused == {"compensated", "error-aware"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "criterion", [name for name in sorted(CRITERIA) if needs_of(name) is not SEARCH]
)
def test_every_criterion_but_searches_prunes_it(
    model: Path, criterion: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Seven yews and some larches were felled on Monday by the river. " * 40)
    api.prune(
        model, tmp_path / "out", ratio=0.3, criterion=criterion, samples=20, seqlen=16,
        calibration=text, state=tmp_path / "state",
    )  # fmt: skip
    assert read_plan(tmp_path / "out" / PLAN_NAME).blocks
    assert open_checkpoint(tmp_path / "out").parameters < open_checkpoint(model).parameters
