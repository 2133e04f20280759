"""Token ids of a context and what continues it, as lm-eval's models of transformers make them.

They are made here and not by lm-eval, so that what was looked at before a measurement is what is
measured, and a tokenizer that fails is told in one line (:mod:`bipline.model.token_ids`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.model.token_ids import token_ids

# The two texts, and the ids of each: what lm-eval's models take.
Encoded = tuple[tuple[str, str], list[int], list[int]]


@dataclass(frozen=True)
class Asked:
    """The model that is asked: its tokenizer, and how many tokens it knows and takes at once."""

    tokenizer: Any
    vocabulary: int
    window: int

    @property
    def prefix(self) -> int:
        """The token that stands before a text without a context: BOS, or EOS where is none."""
        tokenizer = self.tokenizer
        found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return int(found)

    def check_opening(self, name: str) -> None:
        """Raise InvalidInput for a tokenizer that has no token for a text to begin with."""
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            reason = "the model's tokenizer has neither BOS nor EOS to begin a text with"
            raise InvalidInput(f"task {name}: {reason}; name one in tokenizer_config.json")

    def ids(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The ids of each text, opened by the tokenizer's own tokens unless it is already."""
        found: dict[str, list[int]] = {}
        distinct = list(dict.fromkeys(texts))
        opening = self.tokenizer.decode(self.prefix)
        for special in (True, False):
            chosen = [text for text in distinct if text.startswith(opening) is not special]
            found.update(zip(chosen, self._tokens(chosen, special), strict=True))
        return found

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
        """The ids of contexts and of what continues them, each pair cut where its context ends."""
        whole = self.ids(
            text for context, more in pairs if context for text in _parts(context, more)
        )
        alone = list(dict.fromkeys(more for context, more in pairs if not context))
        bare = dict(zip(alone, self._tokens(alone, special=False), strict=True))
        made: list[Encoded] = []
        for context, more in pairs:
            if context:
                first = whole[context.rstrip()]
                made.append(((context, more), first, whole[context + more][len(first) :]))
            else:
                ids = bare[more]
                opened = ids if ids[:1] == [self.prefix] else [self.prefix, *ids]
                made.append(((context, more), opened[:1], opened[1:]))
        return made

    def check(self, row: str, encoded: Sequence[Encoded]) -> None:
        """Raise InvalidInput for a text of no token, and for a token that the model does not have.

        ``row`` says which is looked at.
        """
        for (context, more), first, rest in encoded:
            if not first or not rest:
                text, what = (more, "one of the choices") if first else (context, "the prompt")
                raise InvalidInput(
                    f"{row}: the model's tokenizer makes no token of {what}, {text!a:.60}; "
                    "leave its row out"
                )
            if (highest := max(*first, *rest)) >= self.vocabulary:
                reason = f"token id {highest} is above the model's vocabulary of {self.vocabulary}"
                raise InvalidInput(f"{row}: {reason}; the tokenizer is of another model")

    def _tokens(self, texts: Sequence[str], special: bool) -> Iterable[list[int]]:
        return token_ids(self.tokenizer, texts, special_tokens=special) if texts else ()


def _parts(context: str, more: str) -> tuple[str, str]:
    """The texts whose ids give a pair's: blanks at a context's end belong to what follows."""
    return context.rstrip(), context + more
