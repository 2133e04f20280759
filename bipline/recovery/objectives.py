"""What a recovery minimises: a loss of every token, from the logits that predict it.

The cross-entropy of the text; for ``distill`` the divergence from the dense model beside it
(Hinton et al. 2015); for ``ba-lora`` three regularisers (arXiv 2408.04556). Here the entropy and
the divergence are means over tokens, and the spectrum is that of each window's logits as a matrix
of tokens by vocabulary: a reconstruction, as the published code flattens whole windows into rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from bipline.recovery.examples import NOT_LEARNED
from bipline.settings.recipes import BaLoraRecipe, DistillRecipe, Schedule

SMALLEST = 1e-8


@dataclass(frozen=True)
class Predictions:
    """The dense model's log-probabilities ``[windows, tokens, k]`` of the tokens ``ids``.

    Without ``ids`` they are those of the whole vocabulary.
    """

    logs: Tensor
    ids: Tensor | None = None


class Teacher(Protocol):
    """Who knows the dense model's predictions."""

    def predictions(self, windows: Tensor, numbers: Tensor, temperature: float) -> Predictions:
        """Those for windows ``[windows, seqlen]`` with these numbers, none for the last token."""


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of each token ``[windows, tokens]``, zero where none is learned."""
    flat = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=NOT_LEARNED
    )
    return flat.view(targets.shape)


def divergence(predicted: Predictions, logits: Tensor, temperature: float) -> Tensor:
    """KL of the dense model to these logits in nats, per token, both softened by temperature.

    Where only the likeliest tokens are known, all others count as one.
    """
    logs = functional.log_softmax(logits / temperature, dim=-1)
    known = predicted.logs
    if predicted.ids is not None:
        logs = _with_rest(logs.gather(-1, predicted.ids))
        known = _with_rest(known)
    return (known.exp() * (known - logs)).sum(-1)


def _with_rest(logs: Tensor) -> Tensor:
    """Log-probabilities of some outcomes, and of all others together."""
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(SMALLEST).log()
    return torch.cat([logs, rest], dim=-1)


def negative_entropy(logits: Tensor) -> Tensor:
    """Minus the entropy in nats of each prediction ``[windows, tokens]``."""
    logs = functional.log_softmax(logits, dim=-1)
    return (logs.exp() * logs).sum(-1)


def spectrum(logits: Tensor, leading: int) -> Tensor:
    """Minus the share of the leading singular values of each window's logits, ``[windows]``."""
    values = torch.linalg.svdvals(logits)
    return -values[:, :leading].sum(-1) / values.sum(-1).clamp_min(SMALLEST)


def objective(
    recipe: Schedule,
    logits: Tensor,
    targets: Tensor,
    batch: dict[str, Any],
    teacher: Teacher | None,
) -> Tensor:
    """The loss of each token ``[windows, tokens]`` under a recipe, learned or not."""
    text = token_losses(logits, targets)
    asked = batch["input_ids"], batch["number"]
    if isinstance(recipe, DistillRecipe) and teacher is not None:
        predicted = teacher.predictions(*asked, recipe.temperature)
        far = divergence(predicted, logits, recipe.temperature) * recipe.temperature**2
        return (1 - recipe.teacher_weight) * text + recipe.teacher_weight * far
    if isinstance(recipe, BaLoraRecipe) and teacher is not None:
        return text + _regularised(recipe, logits, teacher.predictions(*asked, 1.0))
    return text


def _regularised(recipe: BaLoraRecipe, logits: Tensor, predicted: Predictions) -> Tensor:
    total = recipe.consistency * divergence(predicted, logits, 1.0)
    if recipe.diversity:
        total = total + recipe.diversity * negative_entropy(logits)
    if recipe.spectrum:
        total = total + recipe.spectrum * spectrum(logits, recipe.leading)[:, None]
    return total
