"""The protocol of an evaluation: everything besides the model that a number depends on.

Two records compare only when their protocols have the same digest, so the digests of texts and
task rows are part of it, and so are dtype, batch size, window length and BOS policy.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bipline.settings.base import Settings
from bipline.settings.line import DtypeName

BosPolicy = Literal["none", "text", "window"]
# Left out of a record, as it was before it could be set: older digests stand.
FILLED_BATCH = 8
# lm-eval's own.
FEWSHOT_SEED = 1234


def _is_none(value: object) -> bool:
    return value is None


class Protocol(Settings):
    """How a model is measured. Windows do not overlap, unless a ``stride`` is given: then every
    window begins so many tokens after the one before, and only its last ``stride`` tokens count.

    ``bos``: ``none`` adds no BOS; ``text`` one before the joined text; ``window`` one before
    every window (which then holds ``seqlen - 1`` tokens of text).
    """

    name: str | None = Field(default=None, exclude_if=_is_none, description="of a ready protocol")
    version: int | None = Field(
        default=None, exclude_if=_is_none, description="of the protocol of that name"
    )
    join: dict[str, str] = Field(
        default={},
        exclude_if=lambda value: not value,
        description="what stands between a text's documents, by the text's name; else a blank line",
    )
    seqlen: int = Field(default=128, ge=2, description="window length in tokens")
    bos: BosPolicy = Field(default="none", description="where a BOS goes: none, text or window")
    stride: int | None = Field(
        default=None,
        ge=1,
        exclude_if=_is_none,
        description="tokens from one window to the next, of which alone the loss counts; null: a "
        "whole window",
    )
    dtype: DtypeName = Field(default="float32", description="compute dtype")
    batch_size: int = Field(default=16, ge=1, le=1 << 16, description="sequences a batch in tasks")
    num_fewshot: int = Field(default=0, ge=0, le=1000, description="examples before each question")
    fewshot_seed: int = Field(
        default=FEWSHOT_SEED,
        ge=0,
        le=(1 << 32) - 1,
        exclude_if=lambda value: value == FEWSHOT_SEED,
        description="draws the examples",
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        exclude_if=_is_none,
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

    @model_validator(mode="after")
    def _overlapping(self) -> Protocol:
        if self.stride is not None and self.stride >= self.width:
            raise ValueError(
                f"stride {self.stride}: a window has {self.width} tokens of text; give fewer, or "
                "no stride for windows that do not overlap"
            )
        return self

    @property
    def width(self) -> int:
        """Tokens of text in a window."""
        return self.seqlen - (self.bos == "window")

    @property
    def on_texts(self) -> Protocol:
        """What of it perplexity depends on, all else at its default."""
        return self._only("join", "seqlen", "bos", "stride", "dtype")

    @property
    def on_tasks(self) -> Protocol:
        """What of it the answers to tasks depend on, all else at its default."""
        names = "dtype", "batch_size", "num_fewshot", "fewshot_seed", "limit", "max_excluded"
        return self._only(*names)

    def _only(self, *names: str) -> Protocol:
        return Protocol(**{name: getattr(self, name) for name in names})

    def described(
        self,
        texts: dict[str, str],
        tasks: dict[str, str],
        task_versions: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """The protocol as JSON with the digests of its texts and tasks, and versions of the tasks.

        How many rows may be left out is none of it: it changes no number.
        """
        own = self.model_dump(mode="json", exclude={"max_excluded"})
        versions = {"task_versions": task_versions} if task_versions else {}
        return {**own, "texts": texts, "tasks": tasks, **versions}
