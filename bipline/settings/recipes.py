"""Recovery recipes as data, apart from the training so that reading a config stays quick.

A recipe is told by its ``kind``; one that tells none is ``lora``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from bipline.settings.base import SeedNumber, Settings

CURVE_POINTS = 200
CHECKPOINTS = 10
STEPS = 200


class Schedule(Settings):
    """How long any recipe trains, on how much at once, and when it looks at what it has done."""

    learning_rate: float = Field(default=1e-4, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of steps that warm up")
    steps: int | None = Field(
        default=None, ge=1, le=10**9,
        description=f"optimiser steps; null is {STEPS}, or as many as tokens has room for",
    )  # fmt: skip
    tokens: int | None = Field(
        default=None, ge=1, description="budget in training tokens, in place of steps"
    )
    batch_size: int = Field(default=8, ge=1, le=1 << 16, description="windows a step")
    accumulation: int = Field(
        default=1, ge=1, description="parts in which a step's windows are run, to save memory"
    )
    checkpointing: bool = Field(
        default=False, description="run each block twice rather than keep its activations"
    )
    seqlen: int = Field(default=128, ge=2, description="window length in tokens")
    patience: int | None = Field(
        default=None, ge=1,
        description="stop after so many checkpoints without a lower loss on windows set aside, and "
        "take the best; null trains every step",
    )  # fmt: skip
    validation: float = Field(
        default=0.05, gt=0, lt=1, description="share of the windows set aside for patience"
    )
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="steps between checkpoints; null is a tenth of them"
    )
    seed: SeedNumber = Field(default=0, description="draws the adapter and orders the windows")

    @model_validator(mode="after")
    def _divides(self) -> Schedule:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}"
            )
        if self.tokens is not None:
            if self.steps is not None:
                raise ValueError("give steps or tokens, not both")
            if self.tokens < self.batch_size * self.seqlen:
                raise ValueError(
                    f"tokens {self.tokens}: one step alone takes {self.batch_size * self.seqlen}"
                )
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps: as many as the budget in tokens has room for, where there is one."""
        if self.tokens is None:
            return self.steps or STEPS
        return self.tokens // (self.batch_size * self.seqlen)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all steps."""
        return self.total_steps * self.batch_size * self.seqlen

    @property
    def point_every(self) -> int:
        """Steps between two points of the curve."""
        return -(-self.total_steps // CURVE_POINTS)

    @property
    def saved_every(self) -> int:
        """Steps between two checkpoints: whole points, so that a resumed curve is the same."""
        wanted = self.checkpoint_every or -(-self.total_steps // CHECKPOINTS)
        return min(-(-wanted // self.point_every) * self.point_every, self.total_steps)


class LoraRecipe(Schedule):
    """A LoRA training: rank and scale of the adapter, and the schedule of its steps."""

    kind: Literal["lora"] = Field(default="lora", description="LoRA on the text alone")
    rank: int = Field(default=8, ge=1, le=1 << 16, description="rank r of the adapter")
    alpha: int = Field(default=16, ge=1, description="scale: the adapter counts alpha / rank")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="dropout before the adapter")


class DistillRecipe(LoraRecipe):
    """LoRA towards the dense model's predictions and the text, each with its share."""

    kind: Literal["distill"] = Field(  # type: ignore[assignment]
        default="distill", description="LoRA with the divergence from the dense model"
    )
    temperature: float = Field(default=1.0, gt=0, description="softens both models' predictions")
    teacher_weight: float = Field(
        default=0.5, ge=0, le=1, description="share of the divergence; the text has the rest"
    )
    top_k: int | None = Field(
        default=None, ge=1,
        description="keep the dense model's k likeliest tokens on disk before training, and the "
        "rest as one; null runs the dense model beside the training",
    )  # fmt: skip


class BaLoraRecipe(LoraRecipe):
    """BA-LoRA (arXiv 2408.04556) with the dense model as the one to stay consistent with."""

    kind: Literal["ba-lora"] = Field(  # type: ignore[assignment]
        default="ba-lora", description="LoRA from principal components, with three regularisers"
    )
    rank: int = Field(default=128, ge=1, le=1 << 16, description="rank r of the adapter")
    alpha: int = Field(default=128, ge=1, description="scale: the adapter counts alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the adapter")
    learning_rate: float = Field(default=2e-5, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of steps that warm up")
    consistency: float = Field(
        default=1e-4, ge=0, description="weight of the divergence from the dense model"
    )
    diversity: float = Field(
        default=3e-4, ge=0, description="weight of the predictions' negative entropy"
    )
    spectrum: float = Field(
        default=1e-4, ge=0, description="weight of the leading share of the logits' spectrum"
    )
    leading: int = Field(default=3, ge=1, description="how many singular values lead")


class FullRecipe(Schedule):
    """Every weight is trained: for small models."""

    kind: Literal["full"] = Field(default="full", description="all weights on the text alone")


RECIPES: dict[str, type[Schedule]] = {
    "lora": LoraRecipe, "distill": DistillRecipe, "ba-lora": BaLoraRecipe, "full": FullRecipe,
}  # fmt: skip
TAUGHT = ("distill", "ba-lora")


def _with_kind(value: Any) -> Any:
    if isinstance(value, dict):
        return {"kind": "lora", **value}
    return value


Recipe = Annotated[
    Annotated[LoraRecipe | DistillRecipe | BaLoraRecipe | FullRecipe, Field(discriminator="kind")],
    BeforeValidator(_with_kind),
]
