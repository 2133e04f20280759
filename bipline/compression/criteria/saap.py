"""``saap``: SAAP-style fused and fluctuation-aware importance (arXiv 2412.15127), a reconstruction.

over the weights w of a group, with the mean gradient g_t of chunk t of the calibration windows:

vector:       v_t = |sum w g_t|
element:      e_t = sum |w g_t|
fused:        I_t = v_t / (2 s_v^2) + e_t / (2 s_e^2)   (+ log s_v s_e, left out: a constant)
              s_v^2, s_e^2 = the means of v and e over the chunks and the block's groups of the kind
fluctuation:  s = mean_t I_t + fluctuation * std_t I_t

The fusion treats both importances as Gaussian outputs with homoscedastic uncertainty; these s^2
minimise its sum over groups and chunks in closed form. The standard deviation is the unbiased one,
every chunk counts alike, a shorter last one too. So groups of low importance and low fluctuation
go first. s has no unit, and attention groups and FFN channels are never ranked together.

Established, from the abstract and a secondary summary: vector-wise and element-wise group
importance fused by homoscedastic uncertainty, and an indicator of how importance fluctuates.
Reconstruction, this project's: the closed form in the place of learned noises, taking chunks of 16
windows for what importance fluctuates over, and the weighted sum of mean and deviation. Gradients
run the windows one at a time: ``micro_batch`` changes nothing here.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.compression.criteria.interface import Block, BlockScores, Options, Sums
from bipline.compression.criteria.needs import GRADIENTS
from bipline.compression.gradient_sums import by_kind, names_of, with_mean_one
from bipline.compression.options import MOST_NUMBER
from bipline.model.hidden_states import CHUNK_WINDOWS

NEEDS = GRADIENTS


class SaapOptions(Options):
    """``fluctuation``: how much the standard deviation over chunks counts; 0 leaves it out."""

    fluctuation: float = Field(default=1.0, ge=0, le=MOST_NUMBER)

    @property
    def least_windows(self) -> int:
        """Two chunks, the second with one window or more, where fluctuation is measured."""
        return CHUNK_WINDOWS + 1 if self.fluctuation else 1


OPTIONS = SaapOptions


def reads(options: SaapOptions) -> frozenset[str]:
    """What ``score`` reads."""
    return names_of("chunk_element_first", "chunk_vector")


def score(sums: Sums, block: Block, options: SaapOptions) -> BlockScores:
    """Scores from the sums alone. Raises InvalidInput when they are of a single chunk."""
    if options.fluctuation and len(sums["ffn_chunk_vector"]) < 2:
        raise InvalidInput(
            f"criterion saap: these calibration windows are one chunk of {CHUNK_WINDOWS}, which "
            f"shows no fluctuation; give at least {options.least_windows} windows, or fluctuation=0"
        )

    def fluctuating(kind: str) -> Tensor:
        both = fused(sums[f"{kind}_chunk_vector"], sums[f"{kind}_chunk_element_first"])
        spread = both.std(0) if options.fluctuation else 0
        return both.mean(0) + options.fluctuation * spread

    return by_kind(fluctuating)


def fused(vector: Tensor, element: Tensor) -> Tensor:
    """Both importances, ``[chunks, groups]``, fused into one whose mean is 1."""
    return (with_mean_one(vector) + with_mean_one(element)) / 2
