"""Calibrate: texts become token windows, which every later stage takes from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bipline.base.errors import InvalidInput
from bipline.base.progress import note
from bipline.compression import calibrate as core
from bipline.compression.compensation.checks import least_samples_of, wanted_samples_of
from bipline.compression.computing import Computing
from bipline.compression.windows import Windows
from bipline.model.block_loop import BlockLoop
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.settings.compress import CompressSettings
from bipline.settings.line import CalibrateSettings, CompensateSettings, LineSettings
from bipline.stages.stage import Context, Lines, Stage
from bipline.storage.directory import DirectoryWriter
from bipline.storage.folder import open_folder
from bipline.storage.ngrams import check_overlap
from bipline.storage.store import Handle
from bipline.values.resolution import ResolvedModel, ResolvedText

STAGE = Stage("calibrate", core.KIND, ("bipline.compression.calibrate",))
DEFAULT_SAMPLES = 128


def calibrate(
    context: Context,
    model: ResolvedModel,
    texts: Mapping[str, ResolvedText],
    settings: CalibrateSettings,
    compensations: Iterable[CompensateSettings],
    evaluation: Iterable[ResolvedText] = (),
) -> Handle:
    """Draw the windows; text that is also evaluation text is refused, drawn before or not.

    Neither the names of the texts nor their order change the draw. Samples that are not named
    are as many as each of ``compensations`` needs, which all use these windows.
    """
    chosen = [texts[name] for name in settings.texts]
    check_overlap(
        [Path(text.location) for text in chosen], [Path(text.location) for text in evaluation]
    )
    samples, fewest = samples_between(context.opened(model), settings, compensations)
    if settings.samples is None and fewest > DEFAULT_SAMPLES:
        note(f"samples {fewest}: compensation needs more than {DEFAULT_SAMPLES} on this model")
    # By content, because the key does not depend on what a text is called; and by how many windows
    # come of each, because shares of 2:2 and of 1:1 draw the same.
    digests, weights = zip(
        *sorted((texts[name].sha256, share) for name, share in settings.texts.items()), strict=True
    )
    mix = list(zip(digests, core.window_counts(weights, samples), strict=True))
    places = {text.sha256: Path(text.location) for text in chosen}
    drawn = {"samples": samples, "seqlen": settings.seqlen, "seed": context.seed}
    drawn |= {"fewest": fewest} if fewest < samples else {}
    inputs = {"tokenizer": model.tokenizer_digest}

    def produce(writer: DirectoryWriter, work: Path) -> None:
        sources = [
            (places[digest], weight) for digest, weight in zip(digests, weights, strict=True)
        ]
        found = core.calibrate(
            open_folder(model.location), sources, **drawn, max_memory=context.compute.max_memory
        )
        core.save_calibration(found, writer)

    return STAGE.run(context, STAGE.key(inputs, {**drawn, "texts": mix}), produce)


def samples_of(
    checkpoint: Checkpoint, settings: CalibrateSettings, compensations: Iterable[CompensateSettings]
) -> int:
    """The most windows that are drawn (see :func:`samples_between`)."""
    return samples_between(checkpoint, settings, compensations)[0]


def samples_between(
    checkpoint: Checkpoint, settings: CalibrateSettings, compensations: Iterable[CompensateSettings]
) -> tuple[int, int]:
    """The most windows, and the fewest where the texts hold no more: as they were set.

    Else 128 or what compensation needs on this model; more only where an option asks for them.
    """
    shape, seqlen, corrected = checkpoint.shape, settings.seqlen, tuple(compensations)
    most = fewest = settings.samples
    if fewest is None or most is None:
        fewest = max(
            [DEFAULT_SAMPLES, *(least_samples_of(one, shape, seqlen) for one in corrected)]
        )
        most = max([fewest, *(wanted_samples_of(one, seqlen) for one in corrected)])
    return most, min(most, settings.fewest_samples or fewest)


def needed(calibration: Handle | None, reader: str) -> Handle:
    """The calibration set. Raises InvalidInput where ``reader`` has none."""
    if calibration is None:
        raise InvalidInput(f"{reader} needs --calibration FILE or hf:NAME")
    return calibration


def windows_of(context: Context, checkpoint: Checkpoint, calibration: Handle) -> Windows:
    """The windows of a stored calibration set, and how this run's stages run them."""
    drawn = core.load_calibration(context.store.open(calibration))
    compute = context.compute
    computing = Computing(torch_dtype(compute.dtype), context.device, compute.micro_batch)
    fitting = computing.within(compute.max_memory, checkpoint, drawn.token_ids)
    return Windows(drawn.token_ids, drawn.digest, fitting)


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """How many windows, and how many tokens they are.

    Raises InvalidInput for texts that are not listed or overlap, and for too little text.
    """
    section, sources = settings.calibrate, settings.texts
    for name in section.texts if sources else ():
        if name not in sources:
            raise InvalidInput(f"calibrate.texts: {name!r} is not listed under texts")
    samples = fewest = section.samples
    if checkpoint is not None:
        samples, fewest = samples_between(checkpoint, section, [settings.compensate])
    if samples is None:
        return [("calibrate", f"{DEFAULT_SAMPLES} windows, or as many as compensation needs")]
    local = not any(source.startswith("hf:") for source in sources.values())
    if thorough and checkpoint and sources and local:
        names = settings.evaluate.texts if isinstance(settings, CompressSettings) else ()
        check_overlap(
            [Path(sources[name]) for name in section.texts], [Path(sources[name]) for name in names]
        )
        mix = [(Path(sources[name]), share) for name, share in section.texts.items()]
        drawn = core.calibrate(
            checkpoint.folder, mix, samples, section.seqlen, settings.seed,
            settings.compute.max_memory, fewest,
        )  # fmt: skip
        samples = fewest = len(drawn.token_ids)
        BlockLoop(checkpoint, torch_dtype(settings.compute.named_dtype)).check(drawn.token_ids)
    tokens = samples * section.seqlen
    told = f"{samples} windows of {section.seqlen} tokens = {tokens:,} tokens"
    return [("calibrate", told if fewest == samples else f"{told}, as far as the texts go")]
