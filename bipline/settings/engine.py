"""Settings that formats with an engine of their own share: how the file is measured."""

from __future__ import annotations

from pydantic import Field

from bipline.settings.base import Settings


class EngineSettings(Settings):
    """How a file is measured by the engine it is for."""

    seqlen: int = Field(default=128, ge=2, description="window length in tokens, for perplexity")
    windows: int = Field(
        default=16, ge=1, description="windows of a text that perplexity is measured on"
    )
    seconds: int = Field(
        default=1800, ge=1, description="most seconds that the engine may take to verify the file"
    )
