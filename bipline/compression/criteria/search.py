"""What a criterion that searches is given: the model, windows, and other criteria's scores.

A search runs the whole model many times under different masks. It keeps no sums; a search that
was killed starts again, and its seed makes it end with the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, field_validator
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.criteria import needs_of, options_of
from bipline.compression.criteria.interface import BlockScores, Options
from bipline.model.block_loop import BlockLoop

KINDS = ("attention_groups", "ffn_channels")


@dataclass(frozen=True)
class Search:
    """The model ready to run, the windows ``[samples, seqlen]``, and how to score it otherwise.

    ``score`` gives the scores of another criterion, by its name and options, on the same model
    and windows.
    """

    loop: BlockLoop
    token_ids: Tensor
    score: Callable[[str, Options], Sequence[BlockScores]]

    def scores_of(self, criterion: str, seed: int) -> list[Tensor]:
        """Another criterion's scores with its default options, a float64 tensor for each kind.

        ``[blocks, num_key_value_heads]`` and ``[blocks, f]``.
        """
        scores = self.score(criterion, options_of(criterion, seed))
        return [torch.stack([getattr(b, kind).cpu().double() for b in scores]) for kind in KINDS]


def batches_of(token_ids: Tensor, size: int, count: int, seed: int) -> Iterator[Tensor]:
    """``count`` batches of ``size`` windows, ``[size, seqlen]``, drawn by the seed.

    Every window comes once before any comes again; batches are smaller where there are fewer
    windows than ``size``.
    """
    size = min(size, len(token_ids))
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(len(token_ids), generator=generator)])
        yield token_ids[waiting[:size]]
        waiting = waiting[size:]


class SearchOptions(Options):
    """What every search may be told.

    ``ratio`` is the share of groups that the searched masks lack, ``initial`` the criterion whose
    scores the search starts from, ``batch`` the windows of a step, and ``tokens`` the budget: the
    tokens of all forward passes together.
    """

    ratio: float = Field(default=0.2, gt=0, lt=1)
    initial: str = "wanda-sp"
    batch: int = Field(default=8, ge=1)
    tokens: int = Field(default=1_000_000, ge=1)

    @field_validator("initial")
    @classmethod
    def _is_no_search(cls, name: str) -> str:
        if not needs_of(name).sums:
            raise ValueError("is itself a search; start from a criterion that is none")
        return name

    def steps(self, searching: Search, passes: int) -> int:
        """Steps that the budget allows, when each runs its batch ``passes`` times.

        Raises InvalidInput, with the least that would do, for a budget of less than one step.
        """
        windows, seqlen = searching.token_ids.shape
        cost = passes * min(self.batch, windows) * seqlen
        if self.tokens < cost:
            raise InvalidInput(
                f"option tokens={self.tokens}: one step of the search runs {cost} tokens; give at "
                "least that many"
            )
        return self.tokens // cost


def cosine(step: int, steps: int) -> float:
    """The share of the learning rate at a step: from 1 down to 0 along half a cosine."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def block_scores(attention_groups: Tensor, ffn_channels: Tensor) -> list[BlockScores]:
    """One :class:`BlockScores` a block from tensors ``[blocks, groups]`` and ``[blocks, f]``."""
    pairs = zip(attention_groups, ffn_channels, strict=True)
    return [BlockScores(groups.clone(), channels.clone()) for groups, channels in pairs]
