"""What a package says of compensation: what it is, and what each block took."""

from __future__ import annotations

from bipline.values.compensation import CompensationRecord, SublayerRecord, counts_text
from bipline.values.plan import PruningPlan

IDEAS: dict[str, str] = {
    "none": "the weights that stay are as they were.",
    "bias": "biases take the mean of what went (FLAP, arXiv 2312.11983).",
    "least-squares": "the weights that stay were corrected in closed form, by regression of what "
    "went on what stays.",
    "obs": "groups were chosen again by structured OBS (OSSCAR, arXiv 2403.12983; SlimGPT, "
    "2412.18110), and the weights that stay corrected in closed form.",
    "osscar": "groups were chosen again, and the weights that stay corrected in closed form, as "
    "published (OSSCAR, arXiv 2403.12983).",
    "slimgpt": "groups were chosen again, and the weights that stay corrected in closed form, as "
    "published (SlimGPT, arXiv 2412.18110).",
}
OF_EXPERTS = (
    " The down_projs of a block's experts are one matrix here, solved for by conjugate gradients."
)
HEADER = ["Block", "Attention", "FFN", "Error without", "Error with"]


def compensation_lines(plan: PruningPlan) -> list[str]:
    """Sentences: which it was, how many matrices took which, and the errors of all blocks."""
    record = plan.compensated
    if record is None:
        return [f"compensation `{plan.compensation}`: {IDEAS[plan.compensation]}"]
    order = "in order, towards the dense model" if record.options["sequential"] else "each alone"
    experts = OF_EXPERTS if any(block.experts for block in plan.blocks) else ""
    return [
        f"compensation `{plan.compensation}`, blocks {order}: {IDEAS[plan.compensation]}{experts}",
        f"matrices took {counts_text(record.counts())}; "
        "error of all blocks on held-out calibration windows "
        f"{record.error_without:.4f} without and {record.error:.4f} with it ({_tokens(record)})",
    ]


def compensation_rows(plan: PruningPlan) -> list[list[str]]:
    """A row for each block: what its matrices took, and its errors; none without compensation."""
    blocks = plan.compensated.blocks if plan.compensated else ()
    return [
        [
            str(block.index), _taken(block.attention), _taken(block.ffn),
            f"{block.error_without:.4f}", f"{block.error:.4f}",
        ]
        for block in blocks
    ]  # fmt: skip


def _tokens(record: CompensationRecord) -> str:
    drawn = ((record.random_tokens, "random"), (record.generated_tokens, "generated"))
    beside = "".join(f" and {tokens:,} {kind} ones" for tokens, kind in drawn if tokens)
    return f"{record.fitted_tokens:,} tokens{beside} fitted, {record.held_out_tokens:,} held out"


def _taken(sublayer: SublayerRecord | None) -> str:
    if sublayer is None:
        return "gone"
    replaced = f", {sublayer.replaced} chosen again" if sublayer.replaced else ""
    inputs = f", inputs mapped ({sublayer.input_beta:g})" if sublayer.input_beta else ""
    rows = ", kept rows fitted" if sublayer.rows_fitted else ""
    factors = sublayer.norm_factors or ()
    gains = f", gains of q and k ({factors[0]:.3f}, {factors[1]:.3f})" if factors else ""
    return f"{sublayer.form}{replaced}{inputs}{rows}{gains}"
