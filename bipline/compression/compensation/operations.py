"""Operations of compensating a block, sequentially: counted from sizes, by part.

Of ``obs`` in the usual case, in which the error falls with it and nothing simpler is fitted, and of
``least-squares``, which has no part of OBS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bipline.compression.compensation.expert_fit import STEPS
from bipline.compression.compensation.memory import moments_operations, rows_operations
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.trials import VERSIONS_TOGETHER
from bipline.model.floor import Counted
from bipline.model.shapes import ModelShape

# Floating-point operations by part.
Operations = dict[str, float]
OBS_PARTS = ("inverse", "elimination", "start of OBS")
# In float32 at least, whatever windows are run in.
WIDE_PARTS = (*OBS_PARTS, "factors", "sides", "solves", "moments")
# What is done of a sweep behind the first, whose steps stop early (benchmarks.forecasts).
LATER_SWEEPS = 0.4
# Whose steps are in bfloat16 where a processor multiplies that itself (kept_rows.quickest).
QUICK_PART = "kept rows"


@dataclass(frozen=True)
class Work:
    """A block, the share of it that is cut, and how many tokens are fitted on and held out.

    Those that are fitted on are the calibration's and the drawn ones. ``whole_attention`` says that
    the FFN takes all of what is cut.
    """

    shape: ModelShape
    ratio: float
    fitted: int
    held: int
    options: CompensationOptions
    whole_attention: bool = False

    @property
    def fits_attention(self) -> bool:
        """Whether o_proj is fitted at all."""
        return self.options.whole_matrices or not self.whole_attention

    @property
    def ffn_ratio(self) -> float:
        """The share of the FFN that is cut."""
        if not self.whole_attention:
            return self.ratio
        shape = self.shape
        ffn = shape.block_weights - shape.num_key_value_heads * shape.group_weights
        return min(1.0, self.ratio * shape.block_weights / ffn)

    @property
    def columns(self) -> list[tuple[int, float]]:
        """The columns of each matrix that is fitted, with the share of them that is cut."""
        attention = self.output_columns, 0.0 if self.whole_attention else self.ratio
        # Experts are not solved for by a factor of all that there is.
        ffn = [] if self.shape.num_experts else [(self.shape.intermediate_size, self.ffn_ratio)]
        return [attention, *ffn] if self.fits_attention else ffn

    @property
    def moments(self) -> float:
        """Operations of the matrices' moments."""
        return moments_operations(self.shape, self.fitted, True, False, self.fits_attention)

    @property
    def ffn_moments(self) -> float:
        """Those of down_proj's inputs alone."""
        return self._moments_of(self.shape.intermediate_size)

    def _moments_of(self, columns: int) -> float:
        return float(self.fitted * columns * (columns + 2 * self.shape.hidden_size))

    @property
    def output_columns(self) -> int:
        """Columns of o_proj."""
        return self.shape.num_attention_heads * self.shape.head_dim

    @property
    def before_attention(self) -> int:
        """Weights of q, k and v."""
        columns = self.output_columns + 2 * self.shape.num_key_value_heads * self.shape.head_dim
        return self.shape.hidden_size * columns


def sequential_operations(
    shape: ModelShape, name: str, options: CompensationOptions, samples: int, seqlen: int,
    ratio: float, whole_attention: bool = False,
) -> Counted:  # fmt: skip
    """Operations of all blocks for so many calibration windows, those that are drawn among them.

    The parts of OBS are there for ``obs`` alone. See :class:`Work` for the rest.
    """
    held = max(1, round(samples * options.held_out))
    drawn = 1 + options.random_windows + options.generated_windows
    fitted = round((samples - held) * drawn)
    written = round((samples - held) * options.generated_windows) * seqlen
    total = Counted(2.0 * written * shape.linear_weights)
    for index in range(shape.num_hidden_layers):
        tokens = fitted * seqlen, held * seqlen
        block = Work(shape.block(index), ratio, *tokens, options, whole_attention)
        found = operations_of(block)
        done = {part: n for part, n in found.items() if name == "obs" or part not in OBS_PARTS}
        wide = sum(each for part, each in done.items() if part in WIDE_PARTS)
        total += Counted(sum(done.values()), wide, done.get(QUICK_PART, 0.0))
    return total


def operations_of(work: Work) -> Operations:
    """Operations by the parts that the benchmark times; attention's scores are left out."""
    found = dict.fromkeys((*OBS_PARTS, "factors", "sides"), 0.0)
    found |= {"solves": 0.0, "moments": 0.0}
    found["moments"] = work.moments
    for columns, ratio in work.columns:
        for part, operations in _fit(work, columns, ratio).items():
            found[part] += operations
    if work.options.input_maps:
        found["moments"] += 3.0 * work.fitted * work.shape.hidden_size**2
        # A map of what attention reads, as wide as the stream.
        found["factors"] += work.shape.hidden_size**3 / 3
        found["solves"] += 2.0 * work.shape.hidden_size**3
    if work.shape.num_experts:
        for part, operations in _experts(work).items():
            found[part] += operations
    found |= {"passes": _passes(work), "held-out windows": _measuring(work)}
    if work.options.row_steps and not work.shape.num_experts:  # whose rows stay
        for part, operations in _rows(work).items():
            found[part] = found.get(part, 0.0) + operations
    return found


def _fit(work: Work, columns: int, ratio: float) -> Operations:
    """One matrix: OBS, then least squares with every ridge on the groups that were chosen."""
    outputs, there = work.shape.hidden_size, round((1 - ratio) * columns)
    gone, ridges = columns - there, len(work.options.ridge_factors)
    return {
        "factors": ridges * there**3 / 3 + columns**3 / 3,
        "inverse": 2 * columns**3 / 3,
        # A triangle of the inverse, and two of W^T D W: one product more each is not counted.
        "elimination": 3.0 * gone * columns**2,
        "start of OBS": 1.0 * outputs * columns**2,
        "sides": 2.0 * outputs * gone * there,
        "solves": ridges * 2 * 2.0 * outputs * there**2,
    }


def _experts(work: Work) -> Operations:
    """All experts: factors of each one's moments, and steps of conjugate gradients.

    With the first ridge both sides are solved for, with the others what is blended of them.
    """
    shape, ridges = work.shape, len(work.options.ridge_factors)
    own, shared = shape.intermediate_size, shape.shared_channels
    cubes = shape.num_experts * own**3 + shared**3
    squares = shape.num_experts * own**2 + shared**2
    step = 4.0 * work.fitted * shape.token_channels + 2.0 * squares
    return {
        "factors": ridges * cubes / 3,
        "solves": (1 + ridges) * STEPS * shape.hidden_size * step,
    }


def _rows(work: Work) -> Operations:
    """Kept rows of v_proj and up_proj, and both matrices fitted again with one ridge.

    Those of the FFN in every sweep, and those that an activation reads, each with down_proj once
    more. All steps of the first sweep are counted, and what is usually done of later ones.
    """
    shape, kept, options = work.shape, 1 - work.ffn_ratio, work.options
    sweeps = 1 + LATER_SWEEPS * (options.row_sweeps - 1)
    ffn_fits = sweeps * (1 + options.activated_rows)
    hidden, channels = shape.hidden_size, shape.intermediate_size
    groups = round((1 - work.ratio) * shape.num_key_value_heads)
    steps = options.row_steps
    found = dict.fromkeys(("factors", "sides", "solves"), 0.0)
    values, ffn_rows = rows_operations(shape, groups, round(kept * channels), work.fitted, steps)
    found[QUICK_PART] = ffn_fits * ffn_rows + (values if work.fits_attention else 0.0)
    found["moments"] = work.moments + (ffn_fits - 1) * work.ffn_moments
    fits = [*work.columns, *work.columns[-1:] * round(ffn_fits - 1)]
    for columns, ratio in fits:
        there = round((1 - ratio) * columns)
        found["factors"] += there**3 / 3
        found["sides"] += 2.0 * hidden * (columns - there) * there
        found["solves"] += 2 * 2.0 * hidden * there**2
    first, second = work.before_attention, hidden * work.output_columns
    inputs = ffn_fits * shape.channel_weights * channels + (first + second) * work.fits_attention
    found["passes"] = 2.0 * work.fitted * inputs
    # As it is, and with two shares of the drift.
    attention = 3 * (kept * second + shape.channel_weights * channels) + 2 * first
    ffn = kept * shape.channel_weights * channels + 2 * (shape.channel_weights - hidden) * channels
    # And before the first step and behind every one, with the rows as they are then.
    attention += (1 + steps) * (first + kept * second)
    ffn += (1 + steps) * kept * shape.channel_weights * channels
    total = attention * work.fits_attention + ffn_fits * ffn
    found["held-out windows"] = 2.0 * work.held * total
    return found


def _passes(work: Work) -> float:
    """Both streams through the block: dense, to o_proj's and down_proj's inputs, and pruned."""
    hidden, channels = work.shape.hidden_size, work.shape.token_channels
    first, second = work.before_attention, hidden * work.output_columns
    block = first + second + work.shape.channel_weights * channels
    kept = 1 - work.ratio
    # The pruned stream is between the halves once, and goes on from there.
    inputs = work.shape.channel_weights * channels + (first + second) * work.fits_attention
    fitted = block + inputs + kept * block
    return 2.0 * (work.fitted * fitted + work.held * (block + kept * block))


def _measuring(work: Work) -> float:
    """Versions of both matrices on held-out windows, with inputs made anew for every few."""
    hidden, channels = work.shape.hidden_size, work.shape.token_channels
    betas, other_ridges = len(work.options.betas), len(work.options.ridge_factors) - 1
    versions, kept = 1 + betas + other_ridges, 1 - work.ratio
    rounds = 1 + -(-betas // VERSIONS_TOGETHER) + other_ridges
    first, second = work.before_attention, hidden * work.output_columns
    attention = versions * (kept * second + work.shape.channel_weights * channels) + rounds * first
    inputs = (work.shape.channel_weights - hidden) * channels
    ffn = versions * kept * hidden * channels + rounds * inputs
    if not work.fits_attention:  # as it is, once
        attention = first + second + work.shape.channel_weights * channels
    whole = 2 * kept * (first + second + work.shape.channel_weights * channels)
    if work.options.input_maps:
        whole += betas * (first + second + work.shape.channel_weights * channels)
    return 2.0 * work.held * (attention + ffn + whole)


def attention_stays(shape: ModelShape, ratio: float, layout: str) -> bool:
    """Whether the attention of a uniform split is likely to stay whole; for an estimate.

    On the models at hand ``compensated`` cut as many groups as the ratio comes to, rounded down.
    """
    return layout == "uniform" and math.floor(ratio * shape.num_key_value_heads) == 0
