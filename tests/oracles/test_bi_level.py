"""Bi-level search: its gradients against their formula, its levels, what it lowers."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.criteria import bi_level
from bipline.compression.criteria.bi_level import Adapters, BiLevelOptions
from bipline.compression.masks import (
    ATTENTION_READER,
    FFN_READER,
    Masks,
    mask_gradients,
    masked_losses,
    top_masks,
)
from bipline.model.loading import load_model
from tests.searches import STEP_TOKENS, WINDOWS, loop_of, plain_loss, random_masks, searched


def plain_reader_gradients(model: Any, masks: Masks, deltas: list[dict[str, Tensor]]) -> Any:
    """d loss / d (m * theta) of both matrices of every block, by plain back-propagation."""
    changed = copy.deepcopy(model)
    leaves = []
    for index, layer in enumerate(changed.model.layers):
        for name, linear, factors in (
            (ATTENTION_READER, layer.self_attn.o_proj, masks.attention_groups[index]),
            (FFN_READER, layer.mlp.down_proj, masks.ffn_channels[index]),
        ):
            columns = factors.repeat_interleave(linear.in_features // len(factors))
            theta = linear.weight.detach() + deltas[index][name]
            linear.weight = torch.nn.Parameter(theta * columns)
            leaves.append((theta, linear.weight, factors))
    gradients = torch.autograd.grad(plain_loss(changed, WINDOWS), [leaf[1] for leaf in leaves])
    return [(t, g, f) for (t, _, f), g in zip(leaves, gradients, strict=True)]


@pytest.mark.parametrize("trained", [True, False])
def test_bi_level_gradient_is_its_formula(family_model: Path, trained: bool) -> None:
    loop = loop_of(family_model)
    shape = loop.checkpoint.shape
    masks = random_masks(shape, 3, 0.6)
    options = BiLevelOptions(weights="lora" if trained else "frozen", rank=3, gamma=0.01)
    adapters = Adapters(shape, options)
    adapters.step(loop, WINDOWS, masks)
    found = bi_level.upper_gradients(loop, WINDOWS, masks, adapters if trained else None, 0.01)
    deltas = []
    for block in loop.blocks():
        theta = bi_level.merged(block.weights, adapters.leaves(block))
        deltas.append({n: (theta[n] - block.weights[n]) * trained for n in theta})
    plain = plain_reader_gradients(load_model(family_model, torch.float64), masks, deltas)
    for place, (theta, nabla, mask) in enumerate(plain):
        width = theta.shape[1] // len(mask)
        for group in range(len(mask)):
            columns = slice(group * width, (group + 1) * width)
            weights, gradient = theta[:, columns], nabla[:, columns]
            implicit = mask[group] * gradient / 0.01 if trained else 0.0
            expected = float(((weights - implicit) * gradient).sum())
            value = float(found[place % 2][place // 2, group])
            assert value == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_frozen_bi_level_gradient_is_that_of_the_masks(llama: Path) -> None:
    loop = loop_of(llama)
    masks = random_masks(loop.checkpoint.shape, 3, 0.6)
    found = bi_level.upper_gradients(loop, WINDOWS, masks, None, 10.0)
    _, expected = mask_gradients(loop, WINDOWS, masks)
    torch.testing.assert_close(found[0], expected.attention_groups, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(found[1], expected.ffn_channels, rtol=1e-9, atol=1e-13)


def test_lower_step_lowers_the_loss_of_the_masked_model(llama: Path) -> None:
    loop = loop_of(llama)
    masks = random_masks(loop.checkpoint.shape, 3, 0.6)
    adapters = Adapters(loop.checkpoint.shape, BiLevelOptions())
    losses = [adapters.step(loop, WINDOWS, masks) for _ in range(5)]
    assert losses[0] == pytest.approx(float(masked_losses(loop, WINDOWS, [masks])[0]))
    assert all(after < before for before, after in pairwise(losses))


def test_the_levels_see_different_windows() -> None:
    upper, lower = bi_level.divided(WINDOWS, 0, True)
    assert len(upper) + len(lower) == len(WINDOWS)
    assert not {tuple(w.tolist()) for w in upper} & {tuple(w.tolist()) for w in lower}
    with pytest.raises(InvalidInput, match="need at least 2"):
        bi_level.divided(WINDOWS[:1], 0, True)


def test_bi_level_lowers_the_loss_of_the_mask(llama: Path) -> None:
    given = {"weights": "frozen", "ratio": 0.5, "initial": "random", "learning_rate": 0.05}
    _, before = searched(llama, "random")
    _, after = searched(llama, "bi-level", tokens=60 * STEP_TOKENS, **given)
    masks = []
    for scores in (before, after):
        kinds = [
            torch.stack([getattr(block, name) for block in scores.blocks])
            for name in ("attention_groups", "ffn_channels")
        ]
        masks.append(Masks(*(top_masks(kind, 0.5) for kind in kinds)))
    losses = masked_losses(loop_of(llama), WINDOWS, masks)
    assert float(losses[1]) < float(losses[0]) - 0.1
