"""Criteria, compensation and gradients where norms, multipliers or storage are not LLaMA's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bipline.compression.criteria import needs_of
from bipline.compression.criteria.interface import Block, Tokens
from bipline.compression.criteria.llm_bip_adjoint import _Adjoint
from bipline.compression.criteria.needs import SEARCH
from bipline.compression.prune import prune
from bipline.model.block_loop import Activations, BlockLoop
from bipline.model.family import RMS_NORM
from bipline.model.halves import O_PROJ, Halves
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.settings.method_names import CRITERIA
from tests.compensated import put_in_place, realised
from tests.masking import layers_of, silence
from tests.observed import SEQLEN, WINDOWS, observed, scores_of, without_columns
from tests.oracles.test_slicing import random_plan
from tests.parted import parted
from tests.scored import scored
from tests.tiny import tiny_model, token_windows

# Multipliers of what sublayers add; gains of one plus a weight; centred norms with no gain.
BEFORE = ("granite", "gemma", "olmo")
# Norms on both sides; norms behind alone, of queries and keys over all heads.
BEHIND = ("gemma2", "olmo2")
# Matrices that are stored as one.
FUSED = ("phi3", "glm")
# LayerNorms with biases, and no gate.
PLAIN = ("starcoder2", "nemotron", "opt", "gpt-neox-sequential", "gpt2")
OTHERS = (*BEFORE, *BEHIND, "phi3", *PLAIN)
BIP = ("llm-bip", "llm-bip-glu", "llm-bip-exact", "llm-bip-adjoint")
GATHERED = ("gate_proj", "up_proj")
COUPLED = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("other") / request.param, request.param)


def test_exact_scores_are_what_the_block_changes_by(other: Path) -> None:
    """By transformers' own block, run again without a group and without a channel."""
    block, seen, output = observed(other)
    scores = scores_of("llm-bip-exact", block, seen)
    for group in range(block.shape.num_key_value_heads):
        columns = slice(group * block.group_width, (group + 1) * block.group_width)
        change = without_columns(other, 1, "self_attn.o_proj.weight", columns) - output
        expected = change.square().sum(1).mean().sqrt()
        torch.testing.assert_close(scores.attention_groups[group], expected, rtol=1e-5, atol=0)
    for channel in (0, 7):
        change = without_columns(other, 1, "mlp.down_proj.weight", slice(channel, channel + 1))
        expected = (change - output).square().sum(1).mean().sqrt()
        torch.testing.assert_close(scores.ffn_channels[channel], expected, rtol=1e-6, atol=0)


def test_the_adjoint_is_that_of_automatic_differentiation(other: Path) -> None:
    block, seen, _ = observed(other)
    resident = BlockLoop(open_checkpoint(other), torch.float64).block(1)
    halves = Halves.of(resident)
    signs = torch.randn(seen["residual"].shape, generator=torch.Generator().manual_seed(1))
    hidden = seen["hidden"].view(*WINDOWS.shape, -1)

    def moved(projected: torch.Tensor) -> torch.Tensor:
        """The block's output when o_proj gives so much more."""
        given = halves.project(O_PROJ, halves.attention_output(hidden)).detach()
        return halves.after_ffn(hidden + halves.added(O_PROJ, given + projected), hidden)

    _, back = torch.autograd.functional.vjp(moved, hidden * 0, signs.double().view_as(hidden))
    expected = back.flatten(0, 1) @ block.weights["self_attn.o_proj.weight"]
    found = _Adjoint(block, Tokens(seen, SEQLEN))(signs.double())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def plain(block: Block, seen: Activations) -> tuple[Block, Activations]:
    """The same block under a plain RMSNorm: its gain as a weight, what it norms centred before."""
    norm = block.norm_before("ffn")
    weights = {**block.weights, "post_attention_layernorm.weight": norm.gain}
    return replace(block, weights=weights, norm=RMS_NORM), {
        **seen,
        "residual": norm.centre(seen["residual"]),
    }


@pytest.mark.parametrize("case", BEFORE)
def test_scores_are_those_of_the_same_block_under_a_plain_norm(case: str, tmp_path: Path) -> None:
    """What moves the mean is no plain norm's affair: such scores are held to the block above."""
    block, seen, _ = observed(tiny_model(tmp_path / case, case))
    for criterion in BIP[:2] if block.norm.centred else BIP:
        found = scores_of(criterion, block, seen)
        expected = scores_of(criterion, *plain(block, seen))
        torch.testing.assert_close(found.attention_groups, expected.attention_groups)
        torch.testing.assert_close(found.ffn_channels, expected.ffn_channels)


def test_gradients_are_of_what_a_group_adds(other: Path) -> None:
    """Sums of |w g| by full back-propagation through transformers' model."""
    windows = token_windows(windows=4, seqlen=12)
    model = load_model(other, torch.float64)
    logits = model(windows).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
    _, scores = scored(other, "llm-pruner", windows=windows)
    checkpoint = open_checkpoint(other)
    for layer, found in zip(layers_of(model), scores.blocks, strict=True):
        moved = {n: each.data * each.grad for n, each in layer.named_parameters()}
        moved = {name: each.abs() for name, each in parted(checkpoint, moved).items()}
        expected = moved["mlp.down_proj.weight"].sum(0)
        for name in GATHERED:
            if f"mlp.{name}.weight" in moved:
                expected = expected + of_rows(moved, f"mlp.{name}")
        torch.testing.assert_close(found.ffn_channels, expected, rtol=1e-6, atol=1e-12)
        # A norm over all heads has an entry for every row.
        groups = len(found.attention_groups)
        expected = moved["self_attn.o_proj.weight"].sum(0).view(groups, -1).sum(1)
        for name in COUPLED:
            if f"self_attn.{name}.weight" in moved:
                rows = of_rows(moved, f"self_attn.{name}")
                expected = expected + rows.view(groups, -1).sum(1)
        torch.testing.assert_close(found.attention_groups, expected, rtol=1e-6, atol=1e-12)


def of_rows(moved: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """Sums of |w g| of a module's rows, biases among them."""
    weight = moved[f"{module}.weight"]
    rows = weight.sum(1) if weight.dim() > 1 else weight
    return rows + moved.get(f"{module}.bias", torch.zeros_like(rows))


def folded(model: Any) -> Any:
    """A model that adds (m W) x in place of m (W x), which is how corrections are stated."""
    for layer in layers_of(model):
        if (multiplier := getattr(layer, "residual_multiplier", 1.0)) == 1:
            continue
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            for parameter in linear.parameters():
                parameter.data *= multiplier
        layer.residual_multiplier = 1.0
    return model


# A bias goes only where the class holds one at o_proj and down_proj.
COMPENSATED = [
    ("granite", "least-squares"), ("granite", "obs"), ("gemma", "obs"), ("olmo", "least-squares"),
    ("hunyuan", "obs"), ("helium", "least-squares"), ("smollm3", "bias"), ("internlm3", "obs"),
    ("gemma2", "obs"), ("gemma3-text", "least-squares"), ("olmo2", "obs"), ("exaone4", "obs"),
    ("olmo3", "least-squares"), ("olmo2", "osscar"), ("glm4", "obs"),
    ("phi3", "obs"), ("phi3-longrope", "least-squares"), ("glm", "obs"),
    ("phi", "obs"), ("cohere", "obs"), ("cohere2", "least-squares"), ("phi-tied", "bias"),
    ("starcoder2", "obs"), ("nemotron", "bias"), ("starcoder2-unbiased", "least-squares"),
    ("opt", "obs"), ("opt-unbiased", "bias"),
    ("falcon", "bias"), ("falcon-new", "obs"), ("falcon-sequential", "obs"),
    ("gpt2", "obs"), ("gpt2-wide", "bias"),
    ("gpt-neox", "obs"), ("gpt-neox-sequential", "bias"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("case", "compensation"), COMPENSATED)
def test_compensated_logits_are_those_of_the_masked_model_with_the_corrections(
    case: str, compensation: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model", case)
    checkpoint = open_checkpoint(model)
    plan = random_plan(checkpoint, 0.3)
    plan, held = realised(checkpoint, plan, tmp_path, compensation)
    prune(checkpoint, plan, tmp_path / "out", corrections=held)
    assert held.blocks, "nothing was corrected"
    masked = load_model(model, torch.float64)
    silence(masked, checkpoint, plan.blocks)
    put_in_place(folded(masked), checkpoint, plan, held)
    with torch.no_grad():
        expected = masked(WINDOWS).logits
        found = load_model(tmp_path / "out", torch.float64)(WINDOWS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


# Searches run the model many times, by the same loop.
SCORED = [name for name in CRITERIA if needs_of(name) != SEARCH]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["granite", "gemma", "olmo", "hunyuan", *BEHIND, *FUSED, *PLAIN])
def test_every_criterion_of_sums_scores(case: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", case)
    for criterion in SCORED:
        _, scores = scored(model, criterion)
        assert all(each.ffn_channels.isfinite().all() for each in scores.blocks)
