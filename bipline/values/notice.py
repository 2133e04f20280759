"""A notice: what somebody who was not watching is told."""

from __future__ import annotations

from typing import Any, Literal

from bipline.values.frozen import Frozen

SCHEMA_VERSION: Literal[1] = 1
# How Slack wants what would otherwise be a mention or a link.
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Notice(Frozen):
    """One event: a run that failed, an alias that moved or did not, a release that was parked.

    ``pipeline`` is what was at work: compress, sweep, promote, rollback or watch. What does not
    apply, or is not known where the notice is made, is None.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    event: str
    pipeline: str
    at: str = ""
    host: str = ""
    run: str | None = None
    source: str | None = None
    model: str | None = None
    version: str | None = None
    alias: str | None = None
    stage: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    log: str | None = None

    @property
    def text(self) -> str:
        """The notice in a sentence."""
        why = f": {self.reason}" if self.reason else ""
        subject = f"{self.model} version {self.version}"
        if self.event == "failure":
            of = f" of {self.source}" if self.source else ""
            code = "" if self.exit_code is None else f" (exit {self.exit_code})"
            return f"{self.pipeline}{of} failed{code}{why}"
        if self.event == "parked":
            return f"watch parked {self.run}{why}"
        if self.event == "refusal":
            return f"{subject} did not become {self.alias}{why}"
        back = ", as before" if self.event == "rollback" else ""
        return f"{subject} is now {self.alias}{back}{why}"

    def payload(self) -> dict[str, Any]:
        """What is posted: ``text``, which chat services show, and the fields that say something."""
        shown = "".join(_ESCAPES.get(letter, letter) for letter in self.text)
        return {"text": f"bipline: {shown}", **self.model_dump(mode="json", exclude_none=True)}
