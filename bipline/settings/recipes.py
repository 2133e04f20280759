"""Recovery recipes as data, apart from the training so that reading a config stays quick."""

from __future__ import annotations

from pydantic import Field

from bipline.settings.base import SeedNumber, Settings


class LoraRecipe(Settings):
    """A LoRA training: rank and scale of the adapter, and the schedule of its steps."""

    rank: int = Field(default=8, ge=1, le=1 << 16, description="rank r of the adapter")
    alpha: int = Field(default=16, ge=1, description="scale: the adapter counts alpha / rank")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="dropout before the adapter")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of steps that warm up")
    steps: int = Field(default=200, ge=1, le=10**9, description="optimiser steps")
    batch_size: int = Field(default=8, ge=1, le=1 << 16, description="windows a step")
    seqlen: int = Field(default=128, ge=2, description="window length in tokens")
    seed: SeedNumber = Field(default=0, description="draws the adapter and orders the windows")
