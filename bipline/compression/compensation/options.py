"""What a compensation may be told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from bipline.compression.criteria.interface import Options
from bipline.compression.options import Numbers, PositiveNumber, PositiveNumbers

# Of one fit: held-out windows stop it long before.
MOST_STEPS = 1000
MOST_TOKENS = 10**12


class SlimGptOptions(Options):
    """``sequential``: on the inputs that the pruned blocks before give; ``held_out``: share of the
    windows that errors are told of.
    """

    sequential: bool = True
    held_out: float = Field(0.1, gt=0, lt=1)


class OsscarOptions(SlimGptOptions):
    """``ridge`` is its damping, as a share of the mean of H's diagonal."""

    ridge: PositiveNumber = 1e-2


class CompensationOptions(Options):
    """``ridge``: lambda as a share of the mean of H's diagonal (OSSCAR's and Tyr's 1e-2);
    ``ridge_factors``: multiples of it that the held-out windows choose from;
    ``sequential``: fit on the inputs that the pruned blocks before give, towards the dense
    model's outputs (methods 5.5); else every block is fitted on the dense model's own inputs;
    ``betas``: how much of the drift of earlier blocks a block may correct, 0 none and 1 all;
    ``bias``: on, off, or auto: where the source has one, and for ``bias`` everywhere;
    ``input_maps``: with ``sequential``, least-squares and obs also take the drift out of what
    q_proj, k_proj and v_proj read, as far as the held-out windows say;
    ``row_steps``: with ``sequential``, least-squares and obs also fit the rows of v_proj and,
    beside a gate, of up_proj that stay, in at most so many steps of conjugate gradients, where and
    as far as the held-out windows say so; 0 for none;
    ``activated_rows``: those of gate_proj too, or of an up_proj without a gate, by the activation's
    derivative; ``row_sweeps``: how often the FFN's rows, and down_proj behind them, are fitted;
    ``whole_matrices``: whether a matrix that loses nothing is corrected for the drift too;
    ``held_out``: share of the windows that nothing is fitted on;
    ``random_windows``: as many windows of random tokens, as a share of those that are fitted on,
    are fitted on too by least-squares and obs, which does not choose by them, where the held-out
    windows have words that the fitted ones lack; ``generated_windows``: the same of windows of the
    model's own text. 0 for none. ``text_tokens``: where the number of calibration windows is not
    set, as many as hold so many tokens are drawn, as far as the text goes; 0 for the usual number.
    """

    ridge: PositiveNumber = 1e-2
    ridge_factors: PositiveNumbers = (0.1, 1.0, 10.0)
    sequential: bool = True
    betas: Numbers = (0.0, 0.25, 0.5, 1.0)
    input_maps: bool = True
    row_steps: int = Field(4, ge=0, le=MOST_STEPS)
    activated_rows: bool = True
    row_sweeps: int = Field(1, ge=1, le=MOST_STEPS)
    whole_matrices: bool = False
    bias: Literal["auto", "on", "off"] = "auto"
    held_out: float = Field(0.1, gt=0, lt=1)
    random_windows: float = Field(0.5, ge=0, le=1)
    generated_windows: float = Field(0.5, ge=0, le=1)
    text_tokens: int = Field(0, ge=0, le=MOST_TOKENS, exclude_if=lambda tokens: not tokens)

    @field_validator("betas")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or min(value) < 0 or max(value) > 1:
            raise ValueError("must be shares between 0 and 1")
        return value

    @property
    def least_windows(self) -> int:
        """One to fit on and one held out."""
        return 2


# What the published compensations may be told, and what they have nothing of.
PUBLISHED: dict[str, type[Options]] = {"osscar": OsscarOptions, "slimgpt": SlimGptOptions}
WITHOUT: dict[str, Any] = {
    "ridge_factors": (1.0,), "betas": (0.0,), "input_maps": False, "row_steps": 0,
    "random_windows": 0.0, "generated_windows": 0.0,
}  # fmt: skip


def published_options(name: str, own: Options) -> CompensationOptions:
    """Those of a published compensation, as all others have them; SlimGPT knows no damping."""
    undamped = {"ridge": 0.0} if name == "slimgpt" else {}
    return CompensationOptions().model_copy(update={**own.model_dump(), **WITHOUT, **undamped})
