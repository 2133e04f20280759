"""What compensation needs in memory beside the block loop: known before anything is computed."""

from __future__ import annotations

from bipline.artifacts.compensation import FORMS, Form
from bipline.compression.compensation.moments import DOUBLE, moments_bytes
from bipline.compression.compensation.obs import obs_bytes
from bipline.compression.compensation.options import CompensationOptions
from bipline.model.shapes import ModelShape

# Square matrices of a solve: the centred moments, their kept part, the same with its ridge, and
# its factor.
SOLVED = 4


def compensation_bytes(
    shape: ModelShape, form: Form, options: CompensationOptions, weight_bytes: int
) -> int:
    """Bytes at the fitting of the widest block: moments, solves and all versions of a matrix.

    ``weight_bytes`` is what one weight takes as it is written. Hidden states of the second stream
    are not counted: they may go to the disk.
    """
    if form == "none":
        return 0
    outputs = shape.hidden_size
    matrices = (shape.num_attention_heads * shape.head_dim, shape.intermediate_size)
    held = [moments_bytes(n, outputs if options.sequential else 0) for n in matrices]
    work = max(_fitting_bytes(n, outputs, form, options, weight_bytes) for n in matrices)
    # Sequentially down_proj's moments are taken when those of o_proj are used up.
    return sum(held) + work


def moments_operations(shape: ModelShape, tokens: int, sequential: bool) -> int:
    """Operations of one block's moments: half of x x^T for both matrices, and of the drift all."""
    columns = (shape.num_attention_heads * shape.head_dim, shape.intermediate_size)
    drift = 2 * shape.hidden_size if sequential else 0
    return sum(tokens * n * (n + drift) for n in columns)


def versions_of(form: Form, options: CompensationOptions) -> int:
    """How many versions of a matrix are compared at most."""
    betas = len(options.betas) if options.sequential else 1
    solved = len(options.ridge_factors) * betas
    by_form = {"none": 1, "bias": betas, "least-squares": solved, "obs": solved}
    return sum(by_form[each] for each in FORMS[: FORMS.index(form) + 1])


def _fitting_bytes(
    columns: int, outputs: int, form: Form, options: CompensationOptions, weight_bytes: int
) -> int:
    versions = versions_of(form, options) * outputs * columns * weight_bytes
    # The source's matrix widened, both sides of the equations and both solutions.
    matrices = 5 * DOUBLE * outputs * columns
    solve = SOLVED * DOUBLE * columns * columns
    chosen = obs_bytes(columns) if form == "obs" else 0
    return versions + matrices + max(solve, chosen)
