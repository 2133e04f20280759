"""What compensation needs in memory beside the block loop: known before anything is computed."""

from __future__ import annotations

from bipline.artifacts.compensation import Form
from bipline.compression.compensation.fitting import VERSIONS_TOGETHER
from bipline.compression.compensation.moments import moments_bytes
from bipline.compression.compensation.obs import obs_bytes
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.triangles import DOUBLE, TILE_COLUMNS, triangles_bytes
from bipline.model.shapes import ModelShape

# Of one number in the dtype that is computed with, unless told otherwise.
COMPUTING_BYTES = 4
# Strips of a triangle that exist at once while it is worked on: of n columns, TILE_COLUMNS each.
STRIPS = 6
# Directions and sides of conjugate gradients, and what a pass adds to one of them.
ROW_VECTORS = 8
# Versions of a matrix: those that are measured together, the best so far and what the plan gives;
# beside one that is widened to the computing dtype to be applied.
VERSIONS = VERSIONS_TOGETHER + 2
# When it is fitted again behind other rows: two shares of the drift, and the best of before too.
SECOND_VERSIONS = 2 + 3


def compensation_bytes(
    shape: ModelShape,
    form: Form,
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
    if form == "none":
        return 0
    outputs = shape.hidden_size
    o_proj, down_proj = shape.num_attention_heads * shape.head_dim, shape.intermediate_size
    products = max(4, computing_bytes)
    drift = outputs if options.sequential else 0

    def held(columns: int) -> int:
        return moments_bytes(columns, drift, products)

    def fitted(columns: int, chosen: bool = form == "obs", versions: int = VERSIONS) -> int:
        there = columns - int(ratio * columns)
        # Of the kept moments with their factor; of the side, and of one or two solutions.
        solve = triangles_bytes(there) + products * outputs * there * (3 if drift else 2)
        versions_bytes = versions * weight_bytes + computing_bytes
        eliminated = obs_bytes(columns, outputs, products) if chosen else 0
        # The matrix is copied where it is read in a narrower dtype than is fitted in.
        widened = products * outputs * columns if computing_bytes < products else 0
        strips = STRIPS * DOUBLE * TILE_COLUMNS * columns
        return max(solve + versions_bytes * outputs * there, eliminated) + widened + strips

    # Moments of down_proj's inputs are taken when those of o_proj's are used up.
    first, second = held(o_proj) + fitted(o_proj), held(down_proj) + fitted(down_proj)
    if not options.sequential:
        return max(first, second)
    inputs = outputs * (o_proj + 2 * shape.num_key_value_heads * shape.head_dim)
    # Behind the pruned attention half, of which there is a copy.
    second += computing_bytes * (inputs + outputs * o_proj)
    if form == "bias":
        return max(first, second)
    # A map of the inputs of q_proj, k_proj and v_proj is made and used up before o_proj's moments
    # come; they are there as they are written and as they are applied, like fitted rows.
    written, applied = weight_bytes * inputs, computing_bytes * inputs
    maps = held(outputs) + fitted(outputs)
    most = written + max(applied + max(first, maps), second)
    if not options.row_steps:
        return most
    there = outputs * (down_proj - int(ratio * down_proj))
    rows = rows_bytes(there // outputs, outputs, products)
    rows += computing_bytes * (inputs + outputs * o_proj + 3 * there)
    # down_proj again behind other rows of up_proj; its version without them is there too.
    again = second - fitted(down_proj) + fitted(down_proj, chosen=False, versions=SECOND_VERSIONS)
    again += (weight_bytes + computing_bytes) * outputs * down_proj
    return max(most, written + max(rows, again))


def rows_bytes(rows: int, columns: int, product_bytes: int) -> int:
    """Bytes of fitting so many rows of a matrix, beside the block they are in."""
    return product_bytes * ROW_VECTORS * rows * columns + triangles_bytes(columns)


def rows_operations(
    shape: ModelShape, groups: int, channels: int, tokens: int, steps: int
) -> tuple[float, float]:
    """Operations of fitting the kept rows of v_proj, and those of up_proj, of one block.

    Every step is a pass through what stays, and back through two matrices; one more makes the
    right side. Attention's scores are left out.
    """
    head = shape.hidden_size * shape.head_dim * groups
    queries = shape.queries_per_group
    attention, ffn = head * (2 * queries + 2), shape.hidden_size * channels
    passes = 2.0 * tokens * (steps + 1)
    return passes * (attention + head * (queries + 1)), passes * (attention + 5 * ffn)


def moments_operations(shape: ModelShape, tokens: int, sequential: bool, maps: bool) -> int:
    """Operations of one block's moments: half of x x^T for every matrix, and of the drift all.

    ``maps`` says whether those of what attention reads are among them.
    """
    columns = [shape.num_attention_heads * shape.head_dim, shape.intermediate_size]
    if maps:
        columns.append(shape.hidden_size)
    drift = 2 * shape.hidden_size if sequential else 0
    return sum(tokens * n * (n + drift) for n in columns)
