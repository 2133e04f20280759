"""Windows of random tokens: they show a fit the words that the calibration text has not.

Least squares knows only the directions that its inputs take. Whatever else a served text says is
left to the ridge, and a model that lost little on the calibration's own kind of text loses far
more on others. Windows that draw from the whole vocabulary cost no text. Where the held-out windows
hold next to no token that the fitted ones lack, words are not what is missing, and random ones only
take room from the others (ours; docs/auto.md has the figures).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bipline.artifacts.compensation import Form
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.streams import divided
from bipline.model.checkpoint import Checkpoint

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
# Of the held-out tokens, those that no fitted window has: up to here the text's words are known.
KNOWN_WITHIN = 0.01


@dataclass(frozen=True)
class Divided:
    """Windows ``[windows, seqlen]``: fitted on, of random tokens and fitted on too, held out."""

    fitted: Tensor
    random: Tensor
    held: Tensor

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.fitted.numel() + self.random.numel() + self.held.numel()


def divided_with_random(
    checkpoint: Checkpoint, token_ids: Tensor, form: Form, options: CompensationOptions
) -> Divided:
    """Calibration windows ``[windows, seqlen]``, divided, and what is drawn beside them."""
    fitted, held = divided(token_ids, options.held_out)
    share, special = random_share(form, options, fitted, held), special_tokens(checkpoint.config)
    drawn = random_windows(fitted, share, checkpoint.shape.vocab_size, special)
    return Divided(fitted, drawn, held)


def random_share(
    form: Form, options: CompensationOptions, fitted: Tensor, held_out: Tensor
) -> float:
    """How many windows of random tokens a form is fitted on, as a share of ``fitted``.

    A bias is a mean; that of random tokens would be none of the text's.
    """
    if form not in ("least-squares", "obs") or unknown_share(fitted, held_out) <= KNOWN_WITHIN:
        return 0.0
    return options.random_windows


def unknown_share(fitted: Tensor, held_out: Tensor) -> float:
    """The share of the tokens held out that are nowhere in the windows that are fitted on."""
    return 1 - float(torch.isin(held_out, fitted).double().mean())


def random_windows(
    token_ids: Tensor, share: float, vocab_size: int, left_out: frozenset[int] = frozenset()
) -> Tensor:
    """As many windows as a share of ``token_ids`` ``[windows, seqlen]``, of the same seqlen.

    Every token is equally likely but those ``left_out``. The draw depends on the arguments alone.
    """
    generator = torch.Generator().manual_seed(0)
    known = torch.tensor([token for token in range(vocab_size) if token not in left_out])
    places = (round(share * len(token_ids)), token_ids.shape[1])
    return known[torch.randint(len(known), places, generator=generator)]


def special_tokens(config: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that a model's config names as beginning, end or padding of a text."""
    found: set[int] = set()
    for value in map(config.get, SPECIAL):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)
