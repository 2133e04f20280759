"""Realise: a plan becomes the plan as it was carried out, and the corrections that go with it.

What a block keeps may change, because structured OBS chooses groups again (as many of them);
what was done to each block is in the plan's record. The corrected tensors lie beside the plan.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression.compensation.checks import compensation_options, needed_bytes
from bipline.compression.compensation.drawn_windows import Division, divided_with_drawn
from bipline.compression.compensation.engine import compensate
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.progress import FolderProgress
from bipline.compression.compensation.streams import PARALLEL_STREAMS, STREAMS
from bipline.compression.computing import Computing
from bipline.compression.corrections import BLOCK_FILES, digest_of
from bipline.compression.windows import Windows
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import build_of
from bipline.model.memory import gigabytes, memory_limit, memory_need
from bipline.model.products import quick_float32
from bipline.settings.line import CompensateSettings
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.stage_key import code_digest, numerics
from bipline.storage.work import claim
from bipline.values.compensation import BlockRecord, Compensation, CompensationRecord, counts_text
from bipline.values.plan import PLAN_NAME, PruningPlan


@quick_float32()
def realise(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    windows: Windows,
    settings: CompensateSettings,
    writer: DirectoryWriter,
    work: Path,
) -> PruningPlan:
    """Correct all blocks of a plan; write the corrections and the realised plan, which it gives.

    Finished blocks are kept in ``work``, and a run that was killed goes on from there.
    Raises InvalidInput as :func:`.checks.check_compensation_settings` does, for a plan that was
    compensated already, and where ``work`` holds other work.
    """
    compensation, options = settings.chosen, compensation_options(settings)
    if plan.compensated:
        raise InvalidInput("the plan was compensated already; apply it with its corrections")
    claim(work, _key(plan, windows, compensation, options))
    progress = FolderProgress(work)
    loop = windows.computing.loop(checkpoint)
    need = needed_bytes(checkpoint, settings, *windows.token_ids.shape)
    spare = _spare_bytes(loop, windows, need)
    divided = divided_with_drawn(loop, windows.token_ids, compensation, options, spare)
    streams = PARALLEL_STREAMS if build_of(checkpoint.family).parallel else STREAMS
    states = streams * divided.tokens * checkpoint.shape.hidden_size * loop.dtype.itemsize
    computing, room = _placed(windows.computing, states, spare)
    note(
        f"compensation {compensation}: at most {gigabytes(need)} for generated text or one block's "
        f"moments, solves and versions; {gigabytes(states)} of hidden states "
        f"{'in memory' if computing.resident else 'on disk'}"
    )
    folder = work / "states"
    # Tensors of finished blocks lie in ``work``, and no longer in memory.
    done = [
        (each.plan, each.record)
        for each in compensate(
            checkpoint, plan, divided, computing, compensation, options, folder, progress, room
        )
    ]
    for path in sorted(work.glob(BLOCK_FILES)):
        shutil.copyfile(path, writer.path / path.name)
    corrections = digest_of(writer.manifest())
    record = _record(plan, windows, options, divided, corrections, [each for _, each in done])
    blocks = tuple(each for each, _ in done)
    realised = plan.model_copy(
        update={"compensation": compensation, "compensated": record, "blocks": blocks}
    )
    write_text(writer.path / PLAN_NAME, realised.to_json())
    note(_summary(record))
    return realised


def _record(
    plan: PruningPlan,
    windows: Windows,
    options: CompensationOptions,
    divided: Division,
    corrections: str,
    blocks: Sequence[BlockRecord],
) -> CompensationRecord:
    """What was done, and by what; ``corrections`` is the digest of what it gave."""
    return CompensationRecord(
        options=options.to_json_value(),
        calibration_digest=windows.digest,
        fitted_tokens=divided.fitted.numel(),
        random_tokens=divided.random.numel(),
        generated_tokens=divided.generated.numel(),
        held_out_tokens=divided.held.numel(),
        asked_plan=plan.digest,
        corrections=corrections,
        blocks=tuple(blocks),
    )


def _placed(computing: Computing, states: int, spare: int) -> tuple[Computing, int]:
    """The same computing, with hidden states on disk where memory has no room for the streams.

    ``states`` are their bytes. Beside it what is left of ``spare`` bytes, for whatever is held so
    that it need not be computed again.
    """
    resident = computing.resident and states <= spare
    if computing.device.type == "cpu" and resident:
        spare -= states
    return replace(computing, resident=resident), spare


def _spare_bytes(loop: BlockLoop, windows: Windows, need: int) -> int:
    """What the computing device has beside the pass and all that compensation needs; at least 0.

    On a GPU half of it, for what is needed is not counted to the byte there.
    """
    if loop.device.type == "cuda":
        free: int = torch.cuda.mem_get_info(loop.device)[0]
        return max(0, free // 2 - need)
    least = memory_need(loop, windows.token_ids, logits=False).least
    return max(0, memory_limit(windows.computing.max_memory) - least - need)


def _key(
    plan: PruningPlan, windows: Windows, compensation: Compensation, options: CompensationOptions
) -> dict[str, Any]:
    """What unfinished work must agree in to be gone on from."""
    computing = windows.computing
    return {
        "plan": plan.digest,
        "calibration": windows.digest,
        "compensation": compensation,
        **{f"option {name}": value for name, value in options.to_json_value().items()},
        "dtype": computing.dtype_name,
        "device": computing.device.type,
        "micro_batch": computing.micro_batch,
        "code": code_digest("bipline.compression.compensation.realise"),
        "numerics": numerics(),
    }


def _summary(record: CompensationRecord) -> str:
    """One line: what the matrices took, and what it did to the blocks' errors."""
    return (
        f"matrices: {counts_text(record.counts())}; error of all blocks on held-out windows "
        f"from {record.error_without:.4f} to {record.error:.4f}"
    )
