"""What each stage has to do at least, from which its floor follows (:mod:`bipline.model.floor`)."""

from __future__ import annotations

from bipline.compression.compensation.memory import moments_operations, rows_operations
from bipline.compression.criteria import needs_of
from bipline.model.checkpoint import Checkpoint
from bipline.model.floor import Counted, Work, forward_operations
from bipline.model.shapes import ModelShape
from bipline.values.compensation import CompensationRecord, SublayerRecord
from bipline.values.plan import PruningPlan


def least_work(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    criterion: str,
    windows: int,
    seqlen: int,
    written: int,
) -> dict[str, Work]:
    """The work of score, compensate and prune, where they have a floor: a search has none.

    ``windows`` of ``seqlen`` tokens were scored; without any the weights are only read.
    ``written`` is the size of the smaller model's weights in bytes.
    """
    shape = checkpoint.shape
    blocks = sum(
        checkpoint.tensors[full].num_bytes
        for index in range(shape.num_hidden_layers)
        for full in checkpoint.stored_names(index).values()
    )
    works = {"prune": Work(read=written, written=written)}
    if record := plan.compensated:
        corrected = compensation_operations(shape, plan, record, seqlen)
        works["compensate"] = Work(blocks, 0, corrected.all, corrected.wide, corrected.quick)
    needs = needs_of(criterion)
    if needs.sums:
        operations = needs.passes * forward_operations(shape, windows, seqlen)
        works["score"] = Work(read=blocks, operations=operations)
    return works


def compensation_operations(
    shape: ModelShape, plan: PruningPlan, record: CompensationRecord, seqlen: int
) -> Counted:
    """Both streams, the products of every fitted matrix's inputs, generated text and fitted rows.

    Moments are never narrower than float32; steps for rows are in what is quickest.
    """
    fitted = record.fitted_tokens + record.random_tokens + record.generated_tokens
    sequential = record.options["sequential"]
    maps = sequential and record.options.get("input_maps", False)
    streams = (2 if sequential else 1) * (fitted + record.held_out_tokens)
    forward = forward_operations(shape, (streams + record.generated_tokens) // seqlen, seqlen)
    # First blocks without experts beside others with some stay whole.
    moments = sum(
        moments_operations(shape, fitted, sequential, maps, _was_fitted(block.attention))
        for block in record.blocks[shape.dense_blocks :]
    )
    rows, steps = 0.0, record.options.get("row_steps", 0)
    # Records of before these options had one sweep, and rows of up_proj alone.
    sweeps = record.options.get("row_sweeps", 1)
    ffn_fits = sweeps * (1 + record.options.get("activated_rows", False))
    for kept, block in zip(plan.blocks, record.blocks, strict=True):
        works = rows_operations(shape, *kept.widths, fitted, steps, kept.queries_per_group)
        fits = ((block.attention, 1), (block.ffn, ffn_fits))
        for (sublayer, count), work in zip(fits, works, strict=True):
            rows += count * work if sublayer and sublayer.rows_fitted else 0
    return Counted(forward + moments + rows, moments, rows)


def _was_fitted(sublayer: SublayerRecord | None) -> bool:
    """Whether anything was fitted to its inputs: what loses nothing has its own error alone."""
    return sublayer is not None and sublayer.errors.keys() != {"none"}
