"""What compensation did to each block, as JSON: what was chosen, errors before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Compensation = Literal["none", "bias", "least-squares", "obs", "osscar", "slimgpt"]
# From the simplest on: each falls back to those before it.
LADDER: tuple[Compensation, ...] = ("none", "bias", "least-squares", "obs")
# These are as published: they fall back to nothing.
COMPENSATIONS: tuple[Compensation, ...] = (*LADDER, "osscar", "slimgpt")


def counts_text(counts: Mapping[str, int]) -> str:
    """How many matrices took each compensation, as users read it."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _absent(value: object) -> bool:
    """Left out of the JSON, so that records from before the field keep their digest."""
    return not value


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SublayerRecord(_Record):
    """One matrix. ``form`` is the compensation that it took, ``errors`` are the best of each
    that was fitted, on held-out windows.

    An error is the mean square, over tokens and hidden channels, of what the block's output
    differs from the dense model's, both behind an RMSNorm: 0 is equal, 2 unrelated.
    ``replaced`` counts the groups that stay and that the plan would have cut. ``input_beta`` is the
    share of the drift that was taken out of what q_proj, k_proj and v_proj read; None for none.
    ``rows_fitted``: the kept rows of the matrix before this one were fitted too. ``norm_factors``:
    by what the gains of norms of queries and keys over all heads were multiplied; None for by 1.
    """

    form: Compensation
    ridge: float | None = None
    beta: float | None = None
    replaced: int = 0
    input_beta: float | None = Field(None, exclude_if=_absent)
    rows_fitted: bool = Field(False, exclude_if=_absent)
    norm_factors: tuple[float, float] | None = Field(None, exclude_if=_absent)
    errors: dict[str, float]

    @property
    def least(self) -> float:
        """The error of the version that was kept."""
        return min(self.errors.values())

    def uncorrected(self) -> SublayerRecord:
        """The same comparison, after which the matrix was left as it is."""
        unused = {"form": "none", "ridge": None, "beta": None, "replaced": 0}
        beside = {"input_beta": None, "rows_fitted": False, "norm_factors": None}
        return self.model_copy(update={**unused, **beside})


class BlockRecord(_Record):
    """One block. ``error_without`` is with both sublayers uncorrected, ``error`` as chosen.

    A sublayer that the plan drops, or that the model lacks, has no record.
    """

    index: int
    attention: SublayerRecord | None
    ffn: SublayerRecord | None
    error_without: float
    error: float


class CompensationRecord(_Record):
    """All blocks, and the windows: how many tokens were fitted and how many held out.

    ``random_tokens`` and ``generated_tokens`` were fitted too and are none of the calibration's.

    ``asked_plan`` is the digest of the plan before its groups were chosen again, ``corrections``
    that of the corrected tensors, without which the plan cannot be applied.
    """

    options: dict[str, Any]
    calibration_digest: str
    fitted_tokens: int
    random_tokens: int = 0
    generated_tokens: int = Field(0, exclude_if=_absent)
    held_out_tokens: int
    asked_plan: str
    corrections: str
    blocks: tuple[BlockRecord, ...]

    @property
    def error_without(self) -> float:
        """Errors of all blocks on held-out windows, nothing corrected, added up."""
        return sum(block.error_without for block in self.blocks)

    @property
    def error(self) -> float:
        """Errors of all blocks on held-out windows, as corrected, added up."""
        return sum(block.error for block in self.blocks)

    def counts(self) -> dict[str, int]:
        """How many matrices took each compensation, the simplest first."""
        chosen = [
            sublayer.form
            for block in self.blocks
            for sublayer in (block.attention, block.ffn)
            if sublayer
        ]
        return {name: chosen.count(name) for name in COMPENSATIONS if name in chosen}
