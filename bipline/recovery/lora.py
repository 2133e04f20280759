"""Recover: a short LoRA training of the pruned model, merged back into plain weights.

LoRA is peft's, trained in float32 on windows of the recovery text. Before the merged weights
are written, the merged model is compared with adapter plus base; after they are written, their
held-out perplexity must have fallen, or the recovery is refused and the pruned model stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.base.extras import check, require
from bipline.base.progress import note, track
from bipline.compression.prune import (
    PLAN_NAME,
    copy_side_files,
    declared,
    write_shipped_files,
)
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint
from bipline.model.families import model_axes
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer, tokenizer_of
from bipline.model.writer import TensorSpec, write_json, write_weights
from bipline.quality.perplexity import perplexity, text_windows
from bipline.settings.recipes import LoraRecipe
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.documents import read_documents
from bipline.storage.folder import Folder
from bipline.values.record import RecoveryRecord

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# float32 rounding of one merged product against two; relative to the largest logit.
MERGE_TOLERANCE = 1e-4


def recover(
    pruned: Path, text: Path, held_out: Path, recipe: LoraRecipe, writer: DirectoryWriter
) -> RecoveryRecord:
    """Train, merge, write the merged model into ``writer``, and judge it on held-out text.

    When the record says ``accepted=False``, what was written is to be thrown away.
    Raises InvalidInput when the text is too short or the extra ``recover`` is missing. A training
    that went wrong is no error: a loss that is not finite or a merge that is not exact is recorded
    as a refusal.
    """
    check("recover")
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(pruned)
    source = open_checkpoint(pruned)
    judge = text_windows(tokenizer, read_documents(held_out), recipe.seqlen, "none")
    before = perplexity(BlockLoop(source), judge, "held-out text before recovery").value
    merged, difference, reason = _train_and_merge(source, tokenizer, text, recipe)
    after = None
    if merged is not None:
        _write_merged(source, merged, writer)
        after = perplexity(
            BlockLoop(open_checkpoint(writer.path)), judge, "held-out text after recovery"
        ).value
        reason = _judgement(before, after)
    accepted = after is not None and after < before
    note(f"recovery {'accepted' if accepted else 'refused'}: {reason}")
    return RecoveryRecord(
        accepted=accepted,
        reason=reason,
        held_out_perplexity_before=before,
        held_out_perplexity_after=after,
        merge_difference=difference,
        recipe=recipe.model_dump(mode="json"),
        tokens=recipe.steps * recipe.batch_size * recipe.seqlen,
    )


def check_texts(folder: Folder, text: Path, held_out: Path, recipe: LoraRecipe) -> None:
    """Raise InvalidInput for a training text or a judge that is too short for the recipe."""
    tokenizer = tokenizer_of(folder)
    text_windows(tokenizer, read_documents(held_out), recipe.seqlen, "none")
    _check_windows(text_windows(tokenizer, read_documents(text), recipe.seqlen, "none"), recipe)


def _check_windows(windows: torch.Tensor, recipe: LoraRecipe) -> None:
    if len(windows) < recipe.batch_size:
        raise InvalidInput(
            f"the recovery text has {len(windows)} windows of {recipe.seqlen} tokens, "
            f"fewer than one batch of {recipe.batch_size}"
        )


def _judgement(before: float, after: float) -> str:
    verb = "fell" if after < before else "did not fall"
    return f"held-out perplexity {verb}: {before:.2f} before, {after:.2f} after"


def _train_and_merge(
    source: Checkpoint, tokenizer: Any, text: Path, recipe: LoraRecipe
) -> tuple[dict[str, torch.Tensor] | None, float | None, str]:
    """The merged weights in float32, how far merging moved the logits, and why there are none."""
    windows = text_windows(tokenizer, read_documents(text), recipe.seqlen, "none")
    adapted = _with_adapter(load_model(source, torch.float32), recipe)
    if not _train(adapted, windows, recipe):
        return None, None, "the loss became NaN or infinite"
    adapted.eval()
    with torch.no_grad():
        expected = adapted(windows[:4]).logits
        merged = adapted.merge_and_unload()
        actual = merged(windows[:4]).logits
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if not difference < MERGE_TOLERANCE:
        return None, difference, f"merging moved the logits by {difference:.1e} of the largest"
    return merged.state_dict(), difference, ""


def _with_adapter(model: Any, recipe: LoraRecipe) -> Any:
    peft = require("peft", "recover")
    configuration = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, configuration)


def _train(model: Any, windows: torch.Tensor, recipe: LoraRecipe) -> bool:
    """AdamW with warm-up and cosine decay; False as soon as the loss is not finite."""
    from transformers import get_cosine_schedule_with_warmup

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    warmup = int(recipe.warmup * recipe.steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, recipe.steps)
    model.train()
    for batch in track(_batches(windows, recipe), "train LoRA", recipe.steps):
        loss = model(input_ids=batch, labels=batch).loss
        if not math.isfinite(loss.item()):
            return False
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return True


def _batches(windows: torch.Tensor, recipe: LoraRecipe) -> Iterator[torch.Tensor]:
    """``steps`` batches of windows, reshuffled by seed each time the text is through."""
    _check_windows(windows, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        if len(order) < recipe.batch_size:
            order = torch.randperm(len(windows), generator=generator)
        yield windows[order[: recipe.batch_size]]
        order = order[recipe.batch_size :]


def _write_merged(
    source: Checkpoint, merged: dict[str, torch.Tensor], writer: DirectoryWriter
) -> None:
    """Write merged weights under the pruned model's names, dtypes and side files."""
    specs = [
        TensorSpec(name, *source.tensor_header(name))
        for name in model_axes(source.family, source.config)
    ]
    dtypes = {name: TORCH_DTYPES[stored.dtype] for name, stored in source.tensors.items()}
    write_weights(
        writer, specs, lambda names: ((name, merged[name].to(dtypes[name])) for name in names)
    )
    write_json(writer, "config.json", source.config)
    plan = source.directory / PLAN_NAME
    if plan.is_file():
        write_text(writer.path / PLAN_NAME, plan.read_text(encoding="utf-8"))
    copy_side_files(source.folder, writer.path)
    write_shipped_files(source.config, writer.path)
    writer.info = declared(source.config, source.parameters, len(specs))
