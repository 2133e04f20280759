"""Speed of a model: medians of repeats with their quartiles, the best only beside them.

What else a machine does makes a repeat slower. So models are compared by repeats that took turns,
and a factor is told with its range, or not at all where the ranges of both overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

from pydantic import Field

from bipline.values.frozen import Frozen

# Not written where nothing is known, so that an older record keeps its bytes and its digest.
ADDED: Any = Field(default=None, exclude_if=lambda value: value is None)
# Of fewer values quartiles say nothing.
FEWEST = 5


class Spread(Frozen):
    """What repeats came to: their median, the quartiles around it, and the best of them.

    ``count`` is how many there were, None where a record does not tell.
    """

    median: float
    lower: float
    upper: float
    best: float
    count: int | None = ADDED

    @classmethod
    def of(cls, values: Sequence[float], higher_is_better: bool = True) -> Spread:
        """The spread of at least one value; of few all lie between lower and upper."""
        low, high = min(values), max(values)
        if len(values) >= FEWEST:
            low, _, high = quantiles(values, n=4, method="inclusive")
        best = max(values) if higher_is_better else min(values)
        count = len(values)
        return cls(median=median(values), lower=low, upper=high, best=best, count=count)

    def factor_over(self, other: Spread) -> Spread | None:
        """This by another, with the least and most that the quartiles allow.

        None where the ranges overlap, or either is of fewer than five repeats, whose range says
        nothing: then no difference is told.
        """
        if min(self.count or FEWEST, other.count or FEWEST) < FEWEST:
            return None
        if self.lower <= other.upper and other.lower <= self.upper:
            return None
        return Spread(
            median=self.median / other.median,
            lower=self.lower / other.upper,
            upper=self.upper / other.lower,
            best=self.best / other.best,
        )


class BatchSpeed(Frozen):
    """Prefill and decode in tokens per second of all sequences together, at one batch size.

    ``first_token_seconds``: from the prompts to the first token of the last sequence.
    """

    batch_size: int
    prefill: Spread
    decode: Spread
    first_token_seconds: Spread


class Speed(Frozen):
    """Tokens per second: prompt processing and greedy decoding, best and median of the repeats.

    Quartiles and everything below ``repeats`` are None in older records. ``filled`` is the same at
    a filled batch; ``taking_turns`` are the models whose repeats alternated with these;
    ``remarks`` say why a pruned model is not faster.
    """

    prefill_tokens_per_second: float
    prefill_median_tokens_per_second: float
    decode_tokens_per_second: float
    decode_median_tokens_per_second: float
    batch_size: int
    prompt_tokens: int
    decoded_tokens: int
    repeats: int
    prefill_quartiles: tuple[float, float] | None = ADDED
    decode_quartiles: tuple[float, float] | None = ADDED
    first_token_seconds: Spread | None = ADDED
    filled: BatchSpeed | None = ADDED
    peak_memory_bytes: int | None = ADDED
    load_seconds: float | None = ADDED
    engine: str | None = ADDED
    taking_turns: tuple[str, ...] | None = ADDED
    remarks: tuple[str, ...] | None = ADDED

    @property
    def prefill(self) -> Spread:
        """Prefill as a spread; an older record's reaches from its median to its best."""
        return self._spread("prefill")

    @property
    def decode(self) -> Spread:
        """Decode in the same way."""
        return self._spread("decode")

    def _spread(self, name: str) -> Spread:
        best = getattr(self, f"{name}_tokens_per_second")
        middle = getattr(self, f"{name}_median_tokens_per_second")
        low, high = getattr(self, f"{name}_quartiles") or (middle, best)
        return Spread(median=middle, lower=low, upper=high, best=best, count=self.repeats)


class Speeds(Frozen):
    """Speeds of models by name, measured in one run."""

    models: dict[str, Speed]
