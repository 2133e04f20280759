"""Settings of the GGUF format: how its tensors are stored, and how the file is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bipline.settings.base import Settings

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


class GgufSettings(Settings):
    """How a GGUF file is written and measured."""

    type: GgufType = Field(
        default="f32", description="what matrices are stored as: f32, f16, bf16, q8_0, q4_0"
    )
    seqlen: int = Field(default=128, ge=2, description="window length in tokens, for perplexity")
    windows: int = Field(
        default=16, ge=1, description="windows of a text that perplexity is measured on"
    )
    seconds: int = Field(
        default=1800, ge=1, description="most seconds that the engine may take to verify the file"
    )
