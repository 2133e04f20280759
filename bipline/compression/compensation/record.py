"""What compensation did to each block, as JSON: forms, errors before and after, what was chosen."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bipline.compression.compensation.options import Form


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SublayerRecord(_Record):
    """One matrix. ``errors`` are the best of each form on held-out windows, by form.

    An error is the mean square, over tokens and hidden channels, of what the block's output
    differs from the dense model's, both behind an RMSNorm: 0 is equal, 2 unrelated.
    ``replaced`` counts the groups that stay and that the plan would have cut.
    """

    form: Form
    ridge: float | None = None
    beta: float | None = None
    replaced: int = 0
    errors: dict[str, float]

    def uncorrected(self) -> SublayerRecord:
        """The same comparison, after which the matrix was left as it is."""
        unused = {"form": "none", "ridge": None, "beta": None, "replaced": 0}
        return self.model_copy(update=unused)


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
    """All blocks, and the windows: how many tokens were fitted and how many held out."""

    form: Form
    options: dict[str, object]
    calibration_digest: str
    fitted_tokens: int
    held_out_tokens: int
    blocks: tuple[BlockRecord, ...]
