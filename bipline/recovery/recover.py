"""Recover: a training of the pruned model, merged back into plain weights and judged.

Before the merged weights are written, the merged model is compared with adapter plus base. After
they are written, the loss on a text that nothing was fitted on must have fallen by more than its
paired interval over windows, or the recovery is refused and the pruned model stands.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.base.extras import check
from bipline.base.progress import note, silently
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.products import quick_float32
from bipline.model.tokenizer import load_tokenizer, tokenizer_of
from bipline.quality.perplexity import measure_text, text_windows
from bipline.recovery.adapter import MERGE_TOLERANCE, in_memory, merged, prepared, save_adapter
from bipline.recovery.examples import Examples, examples_of
from bipline.recovery.objectives import Teacher
from bipline.recovery.place import Place, Trained, random_state_kept
from bipline.recovery.teachers import KeptTeacher, LiveTeacher, keep_predictions
from bipline.recovery.written import write_merged
from bipline.settings.recipes import TAUGHT, DistillRecipe, LoraRecipe, Schedule
from bipline.storage.directory import DirectoryWriter
from bipline.storage.documents import read_documents
from bipline.storage.folder import Folder
from bipline.values.paired import PairedDifference, paired_difference
from bipline.values.recovery import RecoveryRecord

LAST_GOOD = "last-good"
LAST_GOOD_FILES = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors")


@dataclass(frozen=True)
class Request:
    """What is trained, on what, judged by what, beside which dense model."""

    pruned: Path
    text: Path | str
    held_out: Path | str
    recipe: Schedule
    dense: Checkpoint | None = None
    adapter_out: Path | None = None


@quick_float32()
def recover(request: Request, place: Place, writer: DirectoryWriter) -> RecoveryRecord:
    """Train, merge, write the merged model into ``writer``, and judge it on held-out text.

    When the record says ``accepted=False``, what was written is to be thrown away. Raises
    InvalidInput for inputs that :func:`check_inputs` refuses. A training that went wrong is no
    error: a loss that is not finite or a merge that is not exact is recorded as a refusal.
    """
    check("recover")
    source, recipe = open_checkpoint(request.pruned), request.recipe
    check_teacher(source, request.dense, recipe)
    check_adapter(source, request.adapter_out)
    if left := untrained(source):
        note(f"recovery: {left}")
    tokenizer = load_tokenizer(request.pruned)
    judge = text_windows(tokenizer, read_documents(request.held_out), recipe.seqlen, "none")
    record, losses = _before(request, source, judge, place)
    found, weights = _trained(request, source, tokenizer, place)
    record = record.model_copy(update=found)
    if weights is not None:
        write_merged(source, weights, writer)
        del weights  # as large as the model in float32, and not needed to judge it
        record = record.model_copy(update=_judged(writer.path, judge, losses, record, place))
    note(f"recovery {'accepted' if record.accepted else 'refused'}: {record.reason}")
    return record


def _before(
    request: Request, source: Checkpoint, judge: Tensor, place: Place
) -> tuple[RecoveryRecord, tuple[float, ...]]:
    """The record of a recovery that has not trained yet, and the judge's losses by window."""
    loop = BlockLoop(source, device=place.device)
    measured, losses = measure_text(loop, judge, "held-out text before recovery")
    record = RecoveryRecord(
        accepted=False,
        reason="",
        held_out_perplexity_before=measured.value,
        held_out_perplexity_after=None,
        merge_difference=None,
        recipe=request.recipe.model_dump(mode="json"),
        tokens=request.recipe.trained_tokens,
        held_out_perplexity_dense=_of_dense(request.dense, judge, place),
    )
    return record, losses


@quick_float32()
def help_to_train(request: Request, place: Place) -> None:
    """The part of a process that only helps: it trains beside the first, and writes nothing."""
    source = open_checkpoint(request.pruned)
    examples = examples_of(load_tokenizer(request.pruned), request.text, request.recipe)
    _train(request, source, examples, place)


def check_inputs(folder: Folder, text: Path | str, held_out: Path | str, recipe: Schedule) -> None:
    """Raise InvalidInput for a training text or a judge that is too short for the recipe."""
    tokenizer = tokenizer_of(folder)
    text_windows(tokenizer, read_documents(held_out), recipe.seqlen, "none")
    examples_of(tokenizer, text, recipe)


def check_teacher(pruned: Checkpoint, dense: Checkpoint | None, recipe: Schedule) -> None:
    """Raise InvalidInput for a dense model that is missing, or has another vocabulary.

    And for a recipe that would train all weights of a mixture of experts.
    """
    kind = recipe.model_dump()["kind"]
    if pruned.shape.num_experts and not isinstance(recipe, LoraRecipe):
        raise InvalidInput(
            f"recipe {kind} trains every weight, and of a mixture of experts the router and the "
            "experts are not trained; take lora, distill or ba-lora"
        )
    if dense is None:
        if kind in TAUGHT:
            raise InvalidInput(f"recipe {kind} learns from the dense model: give --teacher DENSE")
        return
    sizes = pruned.shape.vocab_size, dense.shape.vocab_size
    if sizes[0] != sizes[1]:
        raise InvalidInput(
            f"the teacher has a vocabulary of {sizes[1]} tokens and the model one of {sizes[0]}; "
            "give the model that was pruned"
        )
    if isinstance(recipe, DistillRecipe) and recipe.top_k and recipe.top_k >= sizes[0]:
        raise InvalidInput(
            f"top_k {recipe.top_k}: the vocabulary has {sizes[0]} tokens; give fewer, or none to "
            "keep all"
        )


def check_adapter(pruned: Checkpoint, adapter_out: Path | None) -> None:
    """Raise InvalidInput for an adapter that is to be kept and that peft would load wrongly."""
    if adapter_out is not None and pruned.shape.shared_channels:
        raise InvalidInput(
            "adapter_out: peft takes adapters of what lies beside the experts of a "
            f"{pruned.config['model_type']} for those of the experts; use the merged model"
        )


def untrained(pruned: Checkpoint) -> str:
    """What of a model no recipe trains, in words; empty where there is no such part."""
    parts = []
    if pruned.shape.num_experts:
        parts.append(
            "experts and routers stay as they are; adapters go on attention and what "
            "all tokens pass through"
        )
    if pruned.nesting:
        model_type, beside = pruned.nesting.config["model_type"], len(pruned.nesting.beside)
        parts.append(f"the decoder of a {model_type} is trained; the {beside} other tensors stay")
    return "; ".join(parts)


def _of_dense(dense: Checkpoint | None, judge: Tensor, place: Place) -> float | None:
    if dense is None:
        return None
    loop = BlockLoop(dense, device=place.device)
    return measure_text(loop, judge, "held-out text, dense model")[0].value


def _trained(
    request: Request, source: Checkpoint, tokenizer: Any, place: Place
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Fields of the record, and the trained weights in float32 where the training went well."""
    examples = examples_of(tokenizer, request.text, request.recipe)
    model, trained = _train(request, source, examples, place)
    tokens = trained.steps * request.recipe.batch_size * request.recipe.seqlen
    found: dict[str, Any] = {
        "curve": trained.curve, "tokens": tokens, "best_step": trained.best_step,
    }  # fmt: skip
    if trained.reason:
        good = trained.last_good
        step = int(good.name.rpartition("-")[2]) if good else 0
        said = f"{trained.reason}; the last good state is that of step {step}"
        return {**found, "reason": said, "last_good_step": step}, None
    if request.adapter_out is not None:
        save_adapter(model, request.adapter_out)
    weights, difference = merged(model, examples.windows, source.shape.num_experts > 0)
    found["merge_difference"] = difference
    if not difference < MERGE_TOLERANCE:
        said = f"merging moved the logits by {difference:.1e} of the largest"
        return {**found, "reason": said}, None
    return found, weights


def _train(
    request: Request, source: Checkpoint, examples: Examples, place: Place
) -> tuple[Any, Trained]:
    # The Trainer brings datasets, pandas and accelerate: only what trains waits for them.
    from bipline.recovery.training import train

    recipe = request.recipe
    with random_state_kept():
        torch.manual_seed(recipe.seed)
        loaded = in_memory(load_model(source, place.dtype).to(place.device))
        model = prepared(loaded, recipe)
        teacher = _teacher(request, examples, place)
        return model, train(model, examples, recipe, teacher, place)


def _teacher(request: Request, examples: Examples, place: Place) -> Teacher | None:
    recipe, dense = request.recipe, request.dense
    if dense is None or recipe.model_dump()["kind"] not in TAUGHT:
        return None
    if not (isinstance(recipe, DistillRecipe) and recipe.top_k):
        return LiveTeacher(dense, place.dtype, place.device)
    folder = place.folder / f"teacher-{place.rank}"
    loop = BlockLoop(dense, place.dtype, place.device)
    keep_predictions(loop, examples, recipe.top_k, recipe.temperature, folder)
    return KeptTeacher(folder)


def _judged(
    written: Path, judge: Tensor, before: Sequence[float], record: RecoveryRecord, place: Place
) -> dict[str, Any]:
    """Fields of the record: what the held-out text says of what was written."""
    with silently():  # what opening tells was told of the model that was pruned
        checkpoint = open_checkpoint(written)
    loop = BlockLoop(checkpoint, device=place.device)
    try:
        after, losses = measure_text(loop, judge, "held-out text after recovery")
    except InvalidInput as error:  # weights that overflow
        return {"reason": str(error)}
    difference = paired_difference(before, losses)
    values = record.held_out_perplexity_before, after.value
    return {
        "accepted": difference.is_told and difference.difference < 0,
        "reason": _judgement(*values, difference),
        "held_out_perplexity_after": after.value,
        "difference": difference,
    }


def _judgement(before: float, after: float, difference: PairedDifference) -> str:
    fell = difference.difference < 0
    verb = "fell" if fell and difference.is_told else "did not fall"
    text = f"held-out perplexity {verb}: {before:.2f} before, {after:.2f} after"
    if difference.is_told or not fell:
        return text
    if difference.low is None:
        return f"{text}; one window alone cannot tell whether that is more than chance"
    low, high = difference.low, difference.high
    return f"{text}; {low:+.4f} to {high:+.4f} nats a token, an interval that holds zero"


def keep_last_good(record: RecoveryRecord, place: Place, writer: DirectoryWriter) -> None:
    """Put what was trained up to the last good step beside the record of a training that failed."""
    if not record.last_good_step:
        return
    source = place.folder / f"checkpoint-{record.last_good_step}"
    target = writer.path / LAST_GOOD
    target.mkdir()
    for name in LAST_GOOD_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
