"""``--dry-run``: what a compress run would do, with sizes, without doing it."""

from __future__ import annotations

from pathlib import Path

from bipline.compression.allocate import (
    AllocationRequest,
    check_ratio,
    check_request,
    uniform_widths_of,
)
from bipline.compression.compensation.realise import CompensationRequest, needed_bytes
from bipline.compression.criteria import options_of
from bipline.compression.partial_sums import share_of
from bipline.compression.score import check_shared
from bipline.face.settle import settle
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.model.memory import gigabytes
from bipline.model.opening import open_checkpoint
from bipline.settings.compress import CompressConfig
from bipline.storage.documents import read_documents


def plan_of_work(config: CompressConfig) -> str:
    """One line per stage. Sizes of a hub model are not known before it is downloaded.

    Raises InvalidInput for what can be seen to fail already now.
    """
    config, reason = settle(config)
    check_ratio(config.allocate.ratio)
    options_of(config.score.criterion, config.score.seed, config.score.options)
    choose_device(config.score.device)
    share_of(config.calibrate.samples, 0, config.score.parts)
    if config.score.parts > 1:
        check_shared(config.score.criterion)
    checkpoint = None if "://" in config.model or config.model.startswith("hf:") else (
        open_checkpoint(Path(config.model))
    )  # fmt: skip
    calibrate, evaluate = config.calibrate, config.evaluate
    tokens = calibrate.samples * calibrate.seqlen
    windows = f"{calibrate.samples} windows of {calibrate.seqlen} tokens = {tokens:,} tokens"
    scoring = f"{config.score.criterion} in {config.score.dtype}{_pass_line(checkpoint, tokens)}"
    if config.score.parts > 1:
        scoring += f", in {config.score.parts} parallel steps"
    lines = [
        *([("method", reason)] if reason else []),
        ("resolve", _model_line(config.model, checkpoint)),
        *((" text", f"{name}: {_text_line(source)}") for name, source in config.texts.items()),
        ("calibrate", windows),
        ("score", scoring),
        ("allocate", _allocate_line(config, checkpoint)),
        ("compensate", _compensate_line(config, checkpoint)),
        ("prune", f"shards of at most {config.prune.shard_bytes / 1e9:g} GB"),
        ("recover", _recover_line(config)),
        ("evaluate", f"perplexity on {', '.join(evaluate.texts) or 'nothing'}; "
                     f"tasks: {', '.join(evaluate.tasks) or 'none'}"),
        ("export", ", ".join(config.export.formats)),
        ("promote", f"register {config.promote.name}, alias {config.promote.alias}"),
    ]  # fmt: skip
    return "\n".join(f"{stage:<11}{text}" for stage, text in lines)


def _model_line(source: str, checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return f"{source} (to be downloaded)"
    size = checkpoint.weight_bytes / 1e6
    return (
        f"{source}: {checkpoint.family.architecture}, {checkpoint.parameters:,} parameters, "
        f"{size:,.1f} MB, {checkpoint.shape.num_hidden_layers} blocks"
    )


def _text_line(source: str) -> str:
    if source.startswith("hf:"):
        return f"{source} (to be downloaded)"
    documents = read_documents(Path(source))
    return f"{source}, {Path(source).stat().st_size / 1e6:.2f} MB, {len(documents)} documents"


def _pass_line(checkpoint: Checkpoint | None, tokens: int) -> str:
    if checkpoint is None:
        return ""
    blocks = checkpoint.shape.linear_weights
    return f", one forward pass of about {2 * blocks * tokens / 1e9:,.1f} GFLOP"


def _allocate_line(config: CompressConfig, checkpoint: Checkpoint | None) -> str:
    section = config.allocate
    request = AllocationRequest(**section.model_dump(exclude={"dtype", "device"}))
    asked = f"remove {section.ratio:g} of {section.ratio_of}, {section.layout} layout"
    if checkpoint is None:
        return asked
    rule = check_request(checkpoint, request, config.score.criterion, config.score.options)
    if (rule, section.layout) != ("uniform", "uniform"):
        return f"{asked}, by {rule}"
    widths, shape = uniform_widths_of(checkpoint, request), checkpoint.shape
    return (
        f"{asked}: keep {widths.attention_groups} of {shape.num_key_value_heads} attention groups "
        f"and {widths.ffn_channels} of {shape.intermediate_size} FFN channels in every block"
    )


def _compensate_line(config: CompressConfig, checkpoint: Checkpoint | None) -> str:
    section, calibrate = config.compensate, config.calibrate
    request = CompensationRequest(section.form or "none", section.options)
    if checkpoint is not None:
        request.check(checkpoint, calibrate.samples, calibrate.seqlen)
    if request.chosen == "none":
        return "none"
    way = "in order, on the pruned stream" if request.settings.sequential else "on dense inputs"
    if checkpoint is None:
        return f"{request.form}, {way}"
    sizes = calibrate.samples, calibrate.seqlen
    need = gigabytes(needed_bytes(checkpoint, request.chosen, request.settings, *sizes))
    return f"{request.form}, {way}; at most {need} for generated text or a block's moments"


def _recover_line(config: CompressConfig) -> str:
    if not config.recover.enabled:
        return "off"
    recipe = config.recover.recipe
    tokens = recipe.steps * recipe.batch_size * recipe.seqlen
    return f"LoRA rank {recipe.rank}, {recipe.steps} steps = {tokens:,} tokens"
