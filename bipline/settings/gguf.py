"""Settings of the GGUF format: how its tensors are stored, and how the file is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bipline.settings.engine import EngineSettings

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


class GgufSettings(EngineSettings):
    """How a GGUF file is written and measured."""

    type: GgufType = Field(
        default="f32",
        description="what matrices are stored as: f32 or, in a gguf, f16, bf16, q8_0, q4_0",
    )
