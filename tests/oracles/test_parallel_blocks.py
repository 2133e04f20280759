"""Attention beside the FFN: scores are what transformers' own block changes by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bipline.compression.allocation.compensated_errors import measure_compensated_errors
from bipline.compression.allocation.sensitivity import sensitivities
from bipline.compression.compensation.obs import elimination_of, remove_greedily
from bipline.compression.compensation.triangles import Triangles
from bipline.compression.criteria import needs_of
from bipline.compression.criteria.block_influence import InfluenceOptions, observe, score
from bipline.compression.criteria.needs import SEARCH
from bipline.face import api
from bipline.model.block_loop import BlockLoop
from bipline.model.families import family_of
from bipline.model.halves import DOWN_PROJ, O_PROJ, Halves
from bipline.model.opening import open_checkpoint
from bipline.settings.method_names import CRITERIA
from bipline.values.plan import PLAN_NAME, read_plan
from tests.command import run
from tests.compression.test_measuring_allocations import TOKENS, check_block_errors, problem_of
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


def test_block_errors_are_those_of_the_block_run_again(model: Path) -> None:
    check_block_errors(model)


@torch.no_grad()
def test_errors_are_what_the_block_is_off_by_with_the_best_weights(model: Path) -> None:
    """Weights by a regression of their own, put into transformers' block, which is run again."""
    problem = problem_of(model)
    errors = measure_compensated_errors(problem, ridge := 1e-9)
    loop = BlockLoop(problem.checkpoint, torch.float64)
    hidden, shape = loop.embed(TOKENS), problem.checkpoint.shape
    for index, error in enumerate(errors):
        block, choices = loop.block(index), problem.choices[index]
        dense, halves, source = block.run(hidden), Halves.of(block), dict(block.weights)
        weights = 1 / (dense.square().mean(-1) + problem.checkpoint.rms_norm_eps).flatten()
        for name, inputs, width, allowed, found in (
            (O_PROJ, halves.attention_output(hidden), shape.head_dim * shape.queries_per_group,
             choices.attention.counts, error.attention),
            (DOWN_PROJ, halves.ffn_activation(hidden), 1, choices.ffn_units, error.ffn_channels),
        ):  # fmt: skip
            x, matrix = inputs.flatten(0, 1), source[f"{name}.weight"]
            second = x.T @ (weights[:, None] * x) / weights.sum()
            elimination = elimination_of(matrix, Triangles.of(second), ridge, width)
            place = len(allowed) // 2
            gone = remove_greedily(elimination, matrix.shape[1] // width - allowed[place])
            stays = torch.ones(matrix.shape[1] // width, dtype=torch.bool)
            stays[gone] = False
            kept, root = stays.repeat_interleave(width), weights.sqrt()[:, None]
            best = torch.linalg.lstsq(root * x[:, kept], root * (x @ matrix.T)).solution.T
            put = torch.zeros_like(matrix)
            put[:, kept] = best
            block.replace({**source, f"{name}.weight": put})
            change = (block.run(hidden) - dense).square().mean(-1).flatten()
            expected = (weights * change).mean()
            assert gone and float(expected) > 1e-4
            torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-9)
        block.replace(source)
        hidden = dense


def test_noise_behind_the_last_block_weighs_both_halves_alike(model: Path) -> None:
    weights = sensitivities(problem_of(model), 20, 0.01, 0)
    assert all(attention == ffn > 0 for attention, ffn in weights)
    assert weights[-1][0] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("effort", ["quick", pytest.param("balanced", marks=pytest.mark.slow)])
def test_auto_prunes_it_and_tells_what_it_did(
    model: Path, effort: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "text.txt").write_text(
        "Seven yews and some larches were felled on Monday by the river. " * 40
    )
    monkeypatch.chdir(tmp_path)
    done = run(
        capfd, "prune", model, "--ratio", "0.2", "--calibration", "text.txt", "--out", "out",
        "--samples", "20", "--seqlen", "16", "--effort", effort,
    )  # fmt: skip
    assert done.code == 0, done.output
    assert "compensated splits, obs corrects" in done.output
    plan, before = read_plan(tmp_path / "out" / PLAN_NAME), open_checkpoint(model).shape
    assert (plan.allocation, plan.compensation) == ("compensated", "obs")
    record = plan.compensated
    assert record is not None and record.error < record.error_without
    assert plan.budget.reached_blocks == pytest.approx(0.2, abs=0.1)
    if family_of(open_checkpoint(model).config["model_type"]).heads_fixed:
        whole = tuple(range(before.num_key_value_heads))
        assert all(block.attention_groups == whole for block in plan.blocks)
    after = open_checkpoint(tmp_path / "out")
    assert after.parameters < open_checkpoint(model).parameters
    assert BlockLoop(after).logits(TOKENS[:2]).isfinite().all()


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
