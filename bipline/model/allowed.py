"""What one key of a config.json may hold: its kind and its range, as data."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

# transformers looks a tokenizer up by this name, so it must be one: no Auto class, no model.
TOKENIZER = re.compile(r"(?!Auto)[A-Za-z][A-Za-z0-9]{0,60}Tokenizer(Fast)?|TokenizersBackend")
LONGEST_TEXT = 4096
# transformers takes no whole number for some rates, and reads the file itself with the tokenizer.
NUMBERS: dict[str, tuple[type, ...]] = {
    "whole": (int,), "decimal": (float,), "number": (int, float), "whole_or_text": (int,),
}  # fmt: skip


class Allowed(BaseModel):
    """What one key may hold: a value of its kind, a list of them where it ``lists``, or null.

    A list of ``blocks`` has one entry for each of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal[
        "whole",
        "decimal",
        "number",
        "whole_or_text",
        "flag",
        "true",
        "false",
        "text",
        "choice",
        "tokenizer",
        "rope",
        "code",
    ]
    least: float = 0
    most: float = 0
    choices: tuple[str, ...] = ()
    lists: Literal["", "also", "only", "blocks"] = ""
    null: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value from JSON is allowed; what a rope or code says is asked elsewhere."""
        if value is None:
            return self.null
        if self.lists and isinstance(value, list):
            return all(self._one(each) for each in value)
        return self.lists not in ("only", "blocks") and self._one(value)

    def _one(self, value: Any) -> bool:
        if self.kind == "whole_or_text" and isinstance(value, str):
            return len(value) <= LONGEST_TEXT
        if kinds := NUMBERS.get(self.kind):
            # A bool is an int to Python, and not to whoever wrote the file.
            return type(value) in kinds and self.least <= value <= self.most
        if self.kind in ("true", "false"):
            return value is (self.kind == "true")
        if self.kind in ("flag", "rope", "code"):
            return isinstance(value, bool if self.kind == "flag" else dict)
        if self.kind == "tokenizer":
            return isinstance(value, str) and bool(TOKENIZER.fullmatch(value))
        texts = isinstance(value, str) and len(value) <= LONGEST_TEXT
        return texts and (self.kind == "text" or value in self.choices)

    def __str__(self) -> str:
        """What is allowed, as a refusal names it."""
        one = {
            "whole": f"a whole number from {self.least:.15g} to {self.most:.15g}",
            "decimal": f"a number with a point from {self.least:.15g} to {self.most:.15g}",
            "number": f"a number from {self.least:.15g} to {self.most:.15g}",
            "whole_or_text": f"a whole number from {self.least:.15g} to {self.most:.15g} or a text",
            "flag": "true or false",
            "true": "true",
            "false": "false",
            "text": "a text",
            "choice": f"one of {', '.join(self.choices)}",
            "tokenizer": "the name of a tokenizer class",
            "rope": "an object with a rope_type",
            "code": "an object",
        }[self.kind]
        several = f"a list, each {one}"
        held = {"": one, "also": f"{one}, or {several}", "only": several, "blocks": several}
        named = held[self.lists]
        return f"{named}, or null" if self.null else named
