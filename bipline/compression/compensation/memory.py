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
# Versions of a matrix beside those that are measured together: the best so far, what the plan
# gives, and one widened to the computing dtype to be applied.
OTHER_VERSIONS = 2


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

    def fitted(columns: int) -> int:
        there = columns - int(ratio * columns)
        # Of the kept moments with their factor; of the side, and of one or two solutions.
        solve = triangles_bytes(there) + products * outputs * there * (3 if drift else 2)
        versions = (VERSIONS_TOGETHER + OTHER_VERSIONS) * weight_bytes + computing_bytes
        chosen = obs_bytes(columns, outputs, products) if form == "obs" else 0
        # The matrix is copied where it is read in a narrower dtype than is fitted in.
        widened = products * outputs * columns if computing_bytes < products else 0
        strips = STRIPS * DOUBLE * TILE_COLUMNS * columns
        return max(solve + versions * outputs * there, chosen) + widened + strips

    # Moments of down_proj's inputs are taken when those of o_proj's are used up.
    first, second = held(o_proj) + fitted(o_proj), held(down_proj) + fitted(down_proj)
    if not options.sequential:
        return max(first, second)
    inputs = outputs * (o_proj + 2 * shape.num_key_value_heads * shape.head_dim)
    # Behind the pruned attention half, of which there is a copy.
    second += computing_bytes * (inputs + outputs * o_proj)
    if not options.input_maps or form == "bias":
        return max(first, second)
    # q_proj, k_proj and v_proj as they are written and as they are applied; a map of their inputs
    # is made and used up before o_proj's moments come.
    read = inputs * (weight_bytes + computing_bytes)
    return read + max(first, second, held(outputs) + fitted(outputs))


def moments_operations(shape: ModelShape, tokens: int, sequential: bool, maps: bool) -> int:
    """Operations of one block's moments: half of x x^T for every matrix, and of the drift all.

    ``maps`` says whether those of what attention reads are among them.
    """
    columns = [shape.num_attention_heads * shape.head_dim, shape.intermediate_size]
    if maps:
        columns.append(shape.hidden_size)
    drift = 2 * shape.hidden_size if sequential else 0
    return sum(tokens * n * (n + drift) for n in columns)
