"""Settings of the ONNX format: how large a model is still exported whole."""

from __future__ import annotations

from pydantic import Field

from bipline.settings.base import ByteCount, Settings


class OnnxSettings(Settings):
    """How an ONNX model is written and checked."""

    most_bytes: ByteCount = Field(
        default=8 * 2**30, description="weights in f32, in bytes, that are exported at most"
    )
    seconds: int = Field(
        default=1800, ge=1, description="most seconds that the engine may take to verify the model"
    )
