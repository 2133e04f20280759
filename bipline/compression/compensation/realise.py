"""Realise: a plan becomes the plan as it was carried out, and the corrections that go with it.

What a block keeps may change, because structured OBS chooses groups again (as many of them);
what was done to each block is in the plan's record. The corrected tensors lie beside the plan.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression.allocation.problem import Windows
from bipline.compression.compensation.drawn_windows import divided_with_drawn, generated_windows
from bipline.compression.compensation.engine import check_compensation, compensate
from bipline.compression.compensation.memory import COMPUTING_BYTES, compensation_bytes
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.compensation.progress import FolderProgress
from bipline.compression.compensation.tokens import least_samples
from bipline.compression.computing import Computing
from bipline.compression.corrections import (
    BLOCK_FILES,
    KIND,
    PLAN_NAME,
    Corrections,
    digest_of,
    open_corrections,
)
from bipline.compression.options import options_from
from bipline.model.checkpoint import FLOAT_DTYPES, Checkpoint
from bipline.model.families import with_output_biases
from bipline.model.memory import gigabytes, memory_limit, memory_need
from bipline.model.sampling import sampling_bytes
from bipline.model.shapes import ModelShape
from bipline.storage.directory import DirectoryWriter, atomic_directory, write_text
from bipline.storage.stage_key import code_digest, numerics
from bipline.storage.work import claim
from bipline.values.compensation import (
    FORMS,
    BlockRecord,
    CompensationRecord,
    Form,
    forms_text,
)
from bipline.values.plan import BlockPlan, PruningPlan


@dataclass(frozen=True)
class CompensationRequest:
    """Which form, and its options as users write them."""

    form: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> Form:
        """The form. Raises InvalidInput for an unknown one."""
        if self.form not in FORMS:
            raise InvalidInput(f"compensation {self.form!r} is unknown; known: {', '.join(FORMS)}")
        return self.form

    @property
    def settings(self) -> CompensationOptions:
        """The options. Raises InvalidInput for one that does not exist or is out of range."""
        if self.form == "none" and self.options:
            raise InvalidInput("compensation none has no options")
        return options_from(CompensationOptions, f"compensation {self.form}", 0, self.options)

    def least_samples(self, shape: ModelShape, seqlen: int) -> int:
        """The fewest samples of ``seqlen`` tokens whose fitted part is enough; 0 for none."""
        if self.chosen == "none":
            return 0
        return least_samples(shape, seqlen, self.settings.held_out)

    def check(
        self, checkpoint: Checkpoint, samples: int, seqlen: int, max_memory: int | None = None
    ) -> None:
        """Raise InvalidInput for what can be seen to fail before any window is drawn.

        ``max_memory`` is the user's limit in bytes.
        """
        form, options = self.chosen, self.settings
        if form == "none":
            return
        check_compensation(checkpoint, samples, seqlen, form, options)
        if options.bias == "on" or (form, options.bias) == ("bias", "auto"):
            with_output_biases(checkpoint.config)
        need = needed_bytes(checkpoint, form, options, samples, seqlen)
        if max_memory is not None and need > max_memory:
            raise InvalidInput(
                f"compensation {form} needs {gigabytes(need)} beside the forward pass, more than "
                f"the limit of {gigabytes(max_memory)}; raise --max-memory, or use a simpler form"
            )


def realise(
    checkpoint: Checkpoint,
    plan: PruningPlan,
    windows: Windows,
    request: CompensationRequest,
    writer: DirectoryWriter,
    work: Path,
) -> PruningPlan:
    """Correct all blocks of a plan; write the corrections and the realised plan, which it gives.

    Finished blocks are kept in ``work``, and a run that was killed goes on from there.
    Raises InvalidInput as :meth:`CompensationRequest.check` does, for a plan that was compensated
    already, and where ``work`` holds other work.
    """
    form, options = request.chosen, request.settings
    if plan.compensated:
        raise InvalidInput("the plan was compensated already; apply it with its corrections")
    claim(work, _key(plan, windows, form, options))
    progress = FolderProgress(work)
    blocks: list[BlockPlan] = []
    records: list[BlockRecord] = []
    loop = windows.computing.loop(checkpoint)
    divided = divided_with_drawn(loop, windows.token_ids, form, options)
    computing = _placed(windows, checkpoint, request, divided.tokens)
    for done in compensate(
        checkpoint, plan, divided, computing, form, options, work / "states", progress
    ):
        blocks.append(done.plan)
        records.append(done.record)
    for path in sorted(work.glob(BLOCK_FILES)):
        shutil.copyfile(path, writer.path / path.name)
    record = CompensationRecord(
        options=options.to_json_value(),
        calibration_digest=windows.digest,
        fitted_tokens=divided.fitted.numel(),
        random_tokens=divided.random.numel(),
        generated_tokens=divided.generated.numel(),
        held_out_tokens=divided.held.numel(),
        asked_plan=plan.digest,
        corrections=digest_of(writer.manifest()),
        blocks=tuple(records),
    )
    realised = plan.model_copy(
        update={"compensation": form, "compensated": record, "blocks": tuple(blocks)}
    )
    write_text(writer.path / PLAN_NAME, realised.to_json())
    note(_summary(record))
    return realised


def _placed(
    windows: Windows, checkpoint: Checkpoint, request: CompensationRequest, tokens: int
) -> Computing:
    """The same computing, with hidden states on disk where memory has no room for both streams.

    ``tokens`` are those of each stream.
    """
    computing = windows.computing
    need = needed_bytes(checkpoint, request.chosen, request.settings, *windows.token_ids.shape)
    states = 2 * tokens * checkpoint.shape.hidden_size * computing.dtype.itemsize
    least = memory_need(computing.loop(checkpoint), windows.token_ids, logits=False).least
    fits = least + need + states <= memory_limit(computing.max_memory)
    resident = computing.resident and fits
    note(
        f"compensation {request.form}: at most {gigabytes(need)} for generated text or one block's "
        f"moments, solves and versions; {gigabytes(states)} of hidden states "
        f"{'in memory' if resident else 'on disk'}"
    )
    return replace(computing, resident=resident)


def realise_in(
    place: Path,
    checkpoint: Checkpoint,
    plan: PruningPlan,
    windows: Windows,
    request: CompensationRequest,
    work: Path,
) -> tuple[PruningPlan, Corrections]:
    """Realise a plan into the directory ``place``, and open it (see :func:`realise`)."""
    with atomic_directory(place, KIND) as writer:
        realise(checkpoint, plan, windows, request, writer, work)
    return open_corrections(place)


def _key(
    plan: PruningPlan, windows: Windows, form: Form, options: CompensationOptions
) -> dict[str, Any]:
    """What unfinished work must agree in to be gone on from."""
    computing = windows.computing
    return {
        "plan": plan.digest,
        "calibration": windows.digest,
        "compensation": form,
        **{f"option {name}": value for name, value in options.to_json_value().items()},
        "dtype": computing.dtype_name,
        "device": computing.device.type,
        "micro_batch": computing.micro_batch,
        "code": code_digest("bipline.compression.compensation.realise"),
        "numerics": numerics(),
    }


def needed_bytes(
    checkpoint: Checkpoint, form: Form, options: CompensationOptions, samples: int, seqlen: int
) -> int:
    """Bytes at the fitting of this model's widest block, or to generate windows if that is more."""
    names = checkpoint.block_names(0).values()
    weight_bytes = max(FLOAT_DTYPES[checkpoint.tensor_header(name)[0]] for name in names)
    generated = generated_windows(form, options, samples)
    return max(
        compensation_bytes(checkpoint.shape, form, options, weight_bytes),
        sampling_bytes(checkpoint.shape, generated, seqlen, COMPUTING_BYTES),
    )


def _summary(record: CompensationRecord) -> str:
    """One line: what the matrices took, and what it did to the blocks' errors."""
    change = f"from {record.error_without:.4f} to {record.error:.4f}"
    return (
        f"matrices: {forms_text(record.forms())}; error of all blocks on held-out windows {change}"
    )
