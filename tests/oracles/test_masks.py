"""Masks and deletions against plain transformers: columns zeroed, layers removed, autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression import deletions
from bipline.compression.deletions import deletion_changes, shapley_values
from bipline.compression.masks import Masks, mask_gradients, masked_losses, top_masks
from bipline.compression.prune import prune
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from tests.per_layer import kept, plan_of
from tests.searches import loop_of, plain_loss, random_masks
from tests.tiny import tiny_model, token_windows

WINDOWS = token_windows(windows=5, seqlen=12)


def scaled(model: Any, masks: Masks) -> Any:
    """A copy of a plain model with the masked columns scaled; gradients reach the masks."""
    changed = copy.deepcopy(model)
    for index, layer in enumerate(changed.model.layers):
        for linear, factors in (
            (layer.self_attn.o_proj, masks.attention_groups[index]),
            (layer.mlp.down_proj, masks.ffn_channels[index]),
        ):
            columns = factors.repeat_interleave(linear.in_features // len(factors))
            weight = linear.weight.detach() * columns
            del linear.weight
            linear.weight = weight
    return changed


def test_masked_losses_equal_transformers_with_those_columns_scaled(family_model: Path) -> None:
    loop = loop_of(family_model)
    shape = loop.checkpoint.shape
    settings = [
        Masks.dense(shape),
        random_masks(shape, 1),
        random_masks(shape, 2, 0.5),
        random_masks(shape, 3, 0.0),
    ]
    found = masked_losses(loop, WINDOWS, settings)
    model = load_model(family_model, torch.float64)
    with torch.no_grad():
        expected = torch.stack([plain_loss(scaled(model, masks), WINDOWS) for masks in settings])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_settings_in_one_pass_equal_one_at_a_time(family_model: Path) -> None:
    loop = loop_of(family_model)
    settings = [random_masks(loop.checkpoint.shape, seed, 0.6) for seed in range(4)]
    together = masked_losses(loop, WINDOWS, settings)
    alone = torch.cat([masked_losses(loop, WINDOWS, [masks]) for masks in settings])
    assert together.equal(alone)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_mask_gradients_equal_full_autograd(
    family_model: Path, tmp_path: Path, micro_batch: int | None
) -> None:
    loop = loop_of(family_model, micro_batch=micro_batch)
    masks = random_masks(loop.checkpoint.shape, 1)
    loss, found = mask_gradients(loop, WINDOWS, masks, tmp_path if micro_batch else None)
    leaves = [masks.attention_groups.clone(), masks.ffn_channels.clone()]
    for leaf in leaves:
        leaf.requires_grad_(True)
    expected = plain_loss(scaled(load_model(family_model, torch.float64), Masks(*leaves)), WINDOWS)
    gradients = torch.autograd.grad(expected, leaves)
    assert loss == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(found.attention_groups, gradients[0], rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(found.ffn_channels, gradients[1], rtol=1e-9, atol=1e-13)
    assert not list(tmp_path.iterdir())


def test_mask_gradients_equal_finite_differences(llama: Path) -> None:
    loop = loop_of(llama)
    masks = random_masks(loop.checkpoint.shape, 2)
    _, found = mask_gradients(loop, WINDOWS, masks)
    # transformers' RMSNorm rounds to float32, so a smaller step would measure that rounding.
    step = 1e-2
    for name, place in (("attention_groups", (0, 3)), ("ffn_channels", (1, 17))):
        moved = []
        for sign in (1, -1):
            held = getattr(masks, name).clone()
            held[place] += sign * step
            moved.append(Masks(**{**vars(masks), name: held}))
        losses = masked_losses(loop, WINDOWS, moved)
        difference = float(losses[0] - losses[1]) / (2 * step)
        assert float(getattr(found, name)[place]) == pytest.approx(difference, rel=1e-3)


def test_top_masks_keep_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_masks(scores, 0.5).tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    assert top_masks(scores, 0.01).sum(1).tolist() == [1, 1]


class Nothing(torch.nn.Module):
    """A sublayer that is not there: it adds nothing to the residual stream."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.attention else nothing


def without(model: Any, unit: str) -> list[Any]:
    """Copies of a plain model with each unit removed, in the blocks' order."""
    copies = []
    for index in range(len(model.model.layers)):
        if unit == "blocks":
            copies.append(copy.deepcopy(model))
            del copies[-1].model.layers[index]
            continue
        for name in ("self_attn", "mlp"):
            copies.append(copy.deepcopy(model))
            setattr(copies[-1].model.layers[index], name, Nothing(name == "self_attn"))
    return copies


@torch.no_grad()
def plain_changes(model: Any, unit: str, metric: str) -> Tensor:
    changes = []
    for changed in without(model, unit):
        if metric == "loss":
            changes.append(plain_loss(changed, WINDOWS) - plain_loss(model, WINDOWS))
        else:
            difference = (changed(WINDOWS).logits - model(WINDOWS).logits)[:, :-1]
            changes.append(difference.norm(dim=-1).mean())
    return torch.stack(changes).view(len(model.model.layers), -1)


@pytest.mark.parametrize("unit", ["blocks", "sublayers"])
@pytest.mark.parametrize("metric", ["loss", "logits"])
def test_deletions_equal_transformers_without_that_layer(
    family_model: Path, unit: Any, metric: Any
) -> None:
    found = deletion_changes(loop_of(family_model), WINDOWS, unit, metric)
    expected = plain_changes(load_model(family_model, torch.float64), unit, metric)
    assert found.shape == (2, 1 if unit == "blocks" else 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_deletions_in_parts_are_the_same(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(llama)
    whole = deletion_changes(loop, WINDOWS, "sublayers", "logits")
    # Room for the states of two windows: five windows take three passes.
    monkeypatch.setattr(deletions, "STATES_BYTES", 2 * 5 * 12 * 32 * 8)
    parts = deletion_changes(loop, WINDOWS, "sublayers", "logits")
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_shapley_values_are_their_definition() -> None:
    changes = torch.tensor([[0.5, -0.1], [2.0, 0.3]], dtype=torch.float64)
    metrics = changes.flatten().tolist()
    expected = []
    for unit in range(4):
        # One measured model for each unit: the one that lacks it.
        absent = [metric for lacking, metric in enumerate(metrics) if lacking == unit]
        present = [metric for lacking, metric in enumerate(metrics) if lacking != unit]
        expected.append(-(sum(present) / len(present) - sum(absent) / len(absent)))
    found = shapley_values(changes)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64))
    assert found.flatten().argsort().equal(changes.flatten().argsort())
    # A metric that starts anywhere else gives the same values.
    torch.testing.assert_close(shapley_values(changes + 7), found)
    with pytest.raises(InvalidInput, match="one block only"):
        shapley_values(torch.ones(1, 1))


def test_models_whose_blocks_differ(tmp_path: Path) -> None:
    """Deletions take them as they are, a missing sublayer changes nothing; masks refuse them."""
    dense = open_checkpoint(tiny_model(tmp_path / "dense", "llama-gqa-biased"))
    prune(dense, plan_of(dense, [kept([], [3, 8, 11]), kept([0, 2], [])]), tmp_path / "pruned")
    loop = loop_of(tmp_path / "pruned")
    found = deletion_changes(loop, WINDOWS, "sublayers", "logits")
    assert (found > 0).tolist() == [[False, True], [True, False]]
    # A block of one sublayer is that sublayer.
    blocks = deletion_changes(loop, WINDOWS, "blocks", "logits")
    torch.testing.assert_close(blocks[:, 0], found.max(1).values)
    with pytest.raises(InvalidInput, match="equally wide"):
        masked_losses(loop, WINDOWS, [])
