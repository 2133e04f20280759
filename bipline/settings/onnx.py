"""Settings of the ONNX format: how much memory writing may take, and how the file is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bipline.settings.base import ByteCount
from bipline.settings.engine import EngineSettings


class OnnxSettings(EngineSettings):
    """How an ONNX model is written and measured."""

    type: Literal["f32"] = Field(default="f32", description="what matrices are stored as: f32")
    max_memory: ByteCount | None = Field(
        default=None,
        description="most memory that writing an onnx may take, such as 8GB; null is what is free",
    )
