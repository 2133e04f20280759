"""PartialEvaluation: what one of several parallel steps measured of a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from pydantic import Field

from bipline.values.frozen import Frozen
from bipline.values.record import Perplexity

# A step's number, counted from 0, and of how many.
Part = tuple[int, int]
WHOLE: Part = (0, 1)
# The sum of log-probabilities in nats, and whether each token was the likeliest.
Answer = tuple[float, bool]


class Answers(Frozen, ser_json_inf_nan="strings"):
    """What a model answered: by a question's number among those of all tasks, and by task what
    it wrote.
    """

    chosen: dict[int, Answer] = Field(default_factory=dict)
    written: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def plus(self, other: Answers) -> Answers:
        """These and another part's."""
        chosen, written = self.chosen | other.chosen, self.written | other.written
        return Answers(chosen=chosen, written=written)


class PartialEvaluation(Frozen):
    """Whole texts, and answers to a share of the tasks' batches.

    ``windows`` are mean nats by window of a text.
    """

    tensor_digest: str
    perplexity: dict[str, Perplexity] = Field(default_factory=dict)
    windows: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    answers: Answers = Answers()
    fitted: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, Any]

    def plus(self, other: PartialEvaluation) -> PartialEvaluation:
        """Both parts as one; where they ran on unlike machines, the environment names both."""
        return PartialEvaluation(
            tensor_digest=self.tensor_digest,
            perplexity=self.perplexity | other.perplexity,
            windows=self.windows | other.windows,
            answers=self.answers.plus(other.answers),
            fitted=self.fitted | other.fitted,
            environment={
                name: _both(value, other.environment.get(name, value))
                for name, value in self.environment.items()
            },
        )


def joined(parts: Sequence[PartialEvaluation]) -> PartialEvaluation:
    """All parts as one."""
    return reduce(PartialEvaluation.plus, parts)


def _both(one: Any, other: Any) -> Any:
    return one if one == other or str(other) in str(one).split("; ") else f"{one}; {other}"
