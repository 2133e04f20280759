"""What compensation needs in memory beside the block loop: known before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from bipline.compression.compensation.moments import moments_bytes
from bipline.compression.compensation.obs import obs_bytes
from bipline.compression.compensation.options import PUBLISHED, CompensationOptions
from bipline.compression.compensation.trials import VERSIONS_TOGETHER
from bipline.compression.compensation.triangles import DOUBLE, TILE_COLUMNS, triangles_bytes
from bipline.model.shapes import ModelShape
from bipline.values.compensation import Compensation

# Of one number in the dtype that is computed with, unless told otherwise.
COMPUTING_BYTES = 4
# Strips of a triangle that exist at once while it is worked on: of n columns, TILE_COLUMNS each.
STRIPS = 6
# Directions and sides of conjugate gradients, and what a pass adds to one of them.
ROW_VECTORS = 8
# Of all experts: a side, and vectors of conjugate gradients, a product of two among them.
EXPERT_VECTORS = 7
# Versions of a matrix: those that are measured together, the best so far and what the plan gives;
# beside one that is widened to the computing dtype to be applied.
VERSIONS = VERSIONS_TOGETHER + 2
# When it is fitted again behind other rows: two shares of the drift, and the best of before too.
SECOND_VERSIONS = 2 + 3


def compensation_bytes(
    shape: ModelShape,
    compensation: Compensation,
    options: CompensationOptions,
    weight_bytes: int,
    computing_bytes: int = COMPUTING_BYTES,
    ratio: float = 0.0,
) -> int:
    """Bytes at the fitting of the widest block: moments, solves and some versions of a matrix.

    ``weight_bytes`` is what one weight takes as it is written, ``computing_bytes`` in the dtype
    that is computed with. ``ratio`` is the least share of a matrix's columns that the plan cuts;
    0 holds for every plan. Hidden states of the second stream are not counted: they may go to the
    disk.
    """
    if compensation == "none":
        return 0
    sizes = _Sizes(shape, compensation, options, weight_bytes, computing_bytes, ratio)
    # Moments of down_proj's inputs are taken when those of o_proj's are used up.
    attention, ffn = sizes.first_fit(sizes.o_proj), sizes.ffn_fit
    if not options.sequential:
        return max(attention, ffn)
    # Behind the pruned attention half, of which there is a copy.
    half = computing_bytes * (sizes.inputs + sizes.outputs * sizes.o_proj)
    if compensation in ("bias", *PUBLISHED):
        return max(attention, ffn + half)
    # What was mapped of q_proj, k_proj and v_proj, or fitted of v_proj alone, is there as it is
    # written, and until the FFN's turn as it is applied. The map is made and used up before
    # o_proj's moments come.
    changed, maps = 0, 0
    if options.input_maps:
        changed, maps = sizes.inputs, sizes.first_fit(sizes.outputs)
    elif options.row_steps:
        changed = sizes.values
    stages = [computing_bytes * changed + max(attention, maps), ffn + half]
    if options.row_steps:
        stages += [each + half for each in sizes.rows_fits]
    return weight_bytes * changed + max(stages)


@dataclass(frozen=True)
class _Sizes:
    """Bytes of one fit after another; the fields are :func:`compensation_bytes`'."""

    shape: ModelShape
    compensation: Compensation
    options: CompensationOptions
    weight_bytes: int
    computing_bytes: int
    ratio: float

    @property
    def outputs(self) -> int:
        return self.shape.hidden_size

    @property
    def o_proj(self) -> int:
        """Columns of o_proj."""
        return self.shape.num_attention_heads * self.shape.head_dim

    @property
    def down_proj(self) -> int:
        """Columns of down_proj."""
        return self.shape.intermediate_size

    @property
    def values(self) -> int:
        """Weights of v_proj."""
        return self.outputs * self.shape.num_key_value_heads * self.shape.head_dim

    @property
    def inputs(self) -> int:
        """Weights of q_proj, k_proj and v_proj."""
        return self.outputs * self.o_proj + 2 * self.values

    @property
    def products(self) -> int:
        """Bytes of a number in the dtype that products are taken in."""
        return max(4, self.computing_bytes)

    def first_fit(self, columns: int) -> int:
        """A matrix of so many columns with its moments, its choice among them."""
        eliminated = 0
        if self.compensation in ("obs", *PUBLISHED):
            eliminated = obs_bytes(columns, self.outputs, self.products)
        return max(self._solving(columns, VERSIONS), eliminated) + self._held(columns)

    @property
    def ffn_fit(self) -> int:
        """down_proj of an FFN, or those of all experts."""
        if not self.shape.num_experts:
            return self.first_fit(self.down_proj)
        dense = self.first_fit(self.shape.dense_channels) if self.options.whole_matrices else 0
        return max(dense, self._experts)

    @property
    def rows_fits(self) -> tuple[int, int]:
        """Rows of up_proj, or of v_proj alone where there are experts, and the matrix behind."""
        if not self.shape.num_experts:
            return self.rows_fit, self.second_fit
        heads = self.outputs * self.o_proj
        rows = rows_bytes(self.values // self.outputs, self.outputs, self.products)
        again = (self.weight_bytes + self.computing_bytes) * heads + self.first_fit(self.o_proj)
        return rows + self.computing_bytes * (self.inputs + heads), again

    @property
    def second_fit(self) -> int:
        """down_proj again behind other rows of up_proj; its version without them is there too."""
        matrices = 1 + self.options.activated_rows
        each = (self.weight_bytes + self.computing_bytes) * self.outputs * self.down_proj
        changed = matrices * each
        fit = self._solving(self.down_proj, SECOND_VERSIONS) + self._held(self.down_proj)
        return changed + fit

    @property
    def rows_fit(self) -> int:
        """The kept rows of up_proj, beside what stays of the FFN."""
        there = self._there(self.down_proj)
        kept = 3 * self.computing_bytes * self.outputs * there
        return rows_bytes(there, self.outputs, self.products) + kept

    @property
    def _experts(self) -> int:
        """All experts: their moments, vectors of conjugate gradients, versions, what stays of them.

        A bias counts as a column. Inputs that are held are no part of it.
        """
        shape, drift = self.shape, int(self.options.sequential)
        own, shared = shape.intermediate_size + 1, shape.shared_channels
        weights = self.outputs * (shape.num_experts * own + shared)
        moments = shape.num_experts * triangles_bytes(own) + triangles_bytes(shared)
        # Beside the drift's side there is the solution of the other.
        solving = self.products * (EXPERT_VECTORS + 2 * drift) + 3 * self.weight_bytes
        measuring = self.products * (4 + 2 * drift) + self.weight_bytes * VERSIONS
        there = shape.ffn_matrices * self.computing_bytes
        return moments + weights * (max(solving, measuring + self.computing_bytes) + there)

    def _there(self, columns: int) -> int:
        return columns - int(self.ratio * columns)

    def _solving(self, columns: int, versions: int) -> int:
        """Of the kept moments with their factor; of the side, solutions and versions."""
        there, sides = self._there(columns), 3 if self.options.sequential else 2
        each = self.products * sides + versions * self.weight_bytes + self.computing_bytes
        return triangles_bytes(there) + each * self.outputs * there

    def _held(self, columns: int) -> int:
        """Moments; strips of triangles; the matrix, copied where it is read in a narrower dtype."""
        drift = self.outputs if self.options.sequential else 0
        widened = self.computing_bytes < self.products
        copied = self.products * self.outputs * columns if widened else 0
        strips = STRIPS * DOUBLE * TILE_COLUMNS * columns
        return moments_bytes(columns, drift, self.products) + copied + strips


def rows_bytes(rows: int, columns: int, product_bytes: int) -> int:
    """Bytes of fitting so many rows of a matrix, beside the block they are in."""
    return product_bytes * ROW_VECTORS * rows * columns + triangles_bytes(columns)


def rows_operations(
    shape: ModelShape,
    groups: int,
    channels: int,
    tokens: int,
    steps: int,
    queries_per_group: int | None = None,
) -> tuple[float, float]:
    """Operations of fitting the kept rows of v_proj, and those of up_proj, of one block.

    Every step is what the rows put out, what the matrix makes of it, and both transposed. The right
    side takes as much once more, behind gates or attention weights. Attention's scores and mixtures
    are left out. Every group keeps so many query heads; None for all.
    """
    rows = shape.hidden_size * shape.head_dim * groups
    queries = queries_per_group or shape.queries_per_group
    matrix, ffn = rows * queries, shape.hidden_size * channels
    passes = 2.0 * tokens * (steps + 1)
    attention = passes * 2 * (rows + matrix) + 2.0 * tokens * (rows + matrix)
    return attention, passes * 4 * ffn + 2.0 * tokens * ffn


def moments_operations(
    shape: ModelShape, tokens: int, sequential: bool, maps: bool, attention: bool = True
) -> int:
    """Operations of one block's moments: half of x x^T for every matrix, and of the drift all.

    ``maps`` says whether those of what attention reads are among them, ``attention`` whether those
    of o_proj's inputs are.
    """
    columns = [shape.num_attention_heads * shape.head_dim] if attention else []
    if not shape.num_experts:
        columns.append(shape.intermediate_size)
    if maps:
        columns.append(shape.hidden_size)
    drift = 2 * shape.hidden_size if sequential else 0
    return sum(tokens * n * (n + drift) for n in columns) + _of_experts(shape, tokens, drift)


def _of_experts(shape: ModelShape, tokens: int, drift: int) -> int:
    """The same of every expert over the tokens that it sees, and of what all tokens share.

    What is gone is not of the same inputs: it is a side of its own.
    """
    if not shape.num_experts:
        return 0
    own, shared = shape.intermediate_size, shape.shared_channels
    sides = 2 * shape.hidden_size + drift
    return tokens * (shape.num_experts_per_tok * own * (own + sides) + shared * (shared + sides))
