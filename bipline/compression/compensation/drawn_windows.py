"""Drawn windows: they show a fit what the calibration text has not, and cost no text.

Least squares knows only the directions that its inputs take. Whatever else a served text says is
left to the ridge, and a model that lost little on the calibration's own kind of text loses far
more on others.

random     every token drawn evenly from the vocabulary: words that the text lacks. Where the
           held-out windows hold next to no token that the fitted ones lack, words are not what is
           missing, and random ones only take room from the others (ours)
generated  the model's own text, each window behind a token that is drawn evenly: what it was
           trained on, and not what it is calibrated on (as in LLM-QAT, arXiv 2305.17888)

docs/auto-experiments.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bipline.compression.compensation.options import PUBLISHED, CompensationOptions
from bipline.compression.compensation.streams import divided
from bipline.model.block_loop import BlockLoop
from bipline.model.sampling import sampled_windows
from bipline.values.compensation import Compensation

# The compensations that fit weights and not only a bias.
WEIGHED: tuple[Compensation, ...] = ("least-squares", "obs")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
# Of the held-out tokens, those that no fitted window has: up to here the text's words are known.
KNOWN_WITHIN = 0.01


@dataclass(frozen=True)
class Division:
    """Windows ``[windows, seqlen]``: fitted on, held out, and those drawn and fitted on too."""

    fitted: Tensor
    held: Tensor
    random: Tensor
    generated: Tensor

    @property
    def drawn(self) -> Tensor:
        """Random and generated ones."""
        return torch.cat([self.random, self.generated])

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.fitted.numel() + self.held.numel() + self.drawn.numel()


def divided_with_drawn(
    loop: BlockLoop,
    token_ids: Tensor,
    compensation: Compensation,
    options: CompensationOptions,
    room: float = 0,
) -> Division:
    """Calibration windows ``[windows, seqlen]``, divided, and what is drawn beside them.

    ``room`` is what may be held in bytes so that text is generated sooner.
    """
    fitted, held = divided(token_ids, options.held_out)
    if compensation in PUBLISHED:
        fitted = token_ids  # nothing is chosen by those that are held out
    vocab_size, special = loop.checkpoint.shape.vocab_size, special_tokens(loop.checkpoint.config)
    share = random_share(compensation, options, fitted, held)
    random = random_windows(fitted, share, vocab_size, special)
    count = generated_windows(compensation, options, len(fitted))
    opening = random_windows(fitted[:, :1], count / len(fitted), vocab_size, special)[:, 0]
    generated = fitted[:0]
    if len(opening):
        generated = sampled_windows(loop, opening, fitted.shape[1], room=room)
    return Division(fitted, held, random, generated)


def random_share(
    compensation: Compensation, options: CompensationOptions, fitted: Tensor, held_out: Tensor
) -> float:
    """How many windows of random tokens are fitted on, as a share of ``fitted``.

    A bias is a mean; that of random tokens would be none of the text's.
    """
    if compensation not in WEIGHED or unknown_share(fitted, held_out) <= KNOWN_WITHIN:
        return 0.0
    return options.random_windows


def generated_windows(compensation: Compensation, options: CompensationOptions, fitted: int) -> int:
    """How many windows of the model's own text are fitted on, beside ``fitted`` others."""
    return round(options.generated_windows * fitted) if compensation in WEIGHED else 0


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
