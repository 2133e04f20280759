"""The protocol of an evaluation: everything besides the model that a number depends on.

Two records compare only when their protocols have the same digest, so the digests of texts and
task rows are part of it, and so are dtype, batch size, window length and BOS policy.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bipline.settings.base import Settings
from bipline.settings.line import DtypeName

BosPolicy = Literal["none", "text", "window"]
# Left out of a record, as it was before it could be set: older digests stand.
FILLED_BATCH = 8


class Protocol(Settings):
    """How a model is measured.

    ``bos``: ``none`` adds no BOS; ``text`` one before the joined text; ``window`` one before
    every window (which then holds ``seqlen - 1`` tokens of text).
    """

    seqlen: int = Field(default=128, ge=2, description="window length in tokens")
    bos: BosPolicy = Field(default="none", description="where a BOS goes: none, text or window")
    dtype: DtypeName = Field(default="float32", description="compute dtype")
    batch_size: int = Field(default=16, ge=1, le=1 << 16, description="sequences a batch in tasks")
    num_fewshot: int = Field(default=0, ge=0, le=1000, description="examples before each question")
    limit: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="first rows of each task; null measures all of them",
    )
    max_excluded: float = Field(
        default=0.05, ge=0, le=1, description="share of rows that may be longer than the window"
    )
    speed: bool = Field(default=False, description="measure prefill and decode tokens per second")
    speed_prompt_tokens: int = Field(default=128, ge=1, description="prompt length in tokens")
    speed_decoded_tokens: int = Field(default=32, ge=2, description="decoded length in tokens")
    speed_repeats: int = Field(default=20, ge=1, le=10**6, description="repeats that are timed")
    speed_batch: int = Field(
        default=FILLED_BATCH,
        ge=1,
        le=1 << 12,
        exclude_if=lambda value: value == FILLED_BATCH,
        description="sequences of a filled batch, measured beside batch 1",
    )

    def described(self, texts: dict[str, str], tasks: dict[str, str]) -> dict[str, Any]:
        """The protocol as JSON with the digests of its texts and tasks.

        How many rows may be left out is none of it: it changes no number.
        """
        own = self.model_dump(mode="json", exclude={"max_excluded"})
        return {**own, "texts": texts, "tasks": tasks}
