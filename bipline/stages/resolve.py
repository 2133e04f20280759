"""Resolve: names become exact revisions and digests. Never stored, so changed bytes are seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bipline.base.errors import Refused
from bipline.base.progress import note
from bipline.model import resolve as core
from bipline.model.checkpoint import Checkpoint
from bipline.model.finished import hold_to_manifest
from bipline.model.loading import check_generation
from bipline.model.opening import open_checkpoint
from bipline.quality import zero_shot_sources
from bipline.settings.compress import CompressSettings
from bipline.settings.line import LineSettings
from bipline.stages.stage import Lines
from bipline.storage.directory import atomic_directory
from bipline.storage.documents import text_file
from bipline.storage.folder import LocalFolder, open_folder
from bipline.storage.s3_transfer import download
from bipline.values.resolution import Resolution, ResolvedModel, ResolvedTask, ResolvedText

REGISTRY = "models:/"


def resolve(settings: LineSettings, downloads: Path, registry: str | None = None) -> Resolution:
    """Everything that the settings name; remote sources come to lie below ``downloads``.

    ``registry`` is where ``models:/`` is asked for; None is what MLFLOW_TRACKING_URI says.
    Raises InvalidInput for what cannot be used, EnvironmentFailure where a server does not answer.
    """
    model = resolve_model(settings.model, downloads, registry)
    texts = resolve_texts(settings.texts, downloads)
    tasks = {}
    if isinstance(settings, CompressSettings):
        shots = settings.evaluate.protocol.num_fewshot
        tasks = resolve_tasks(settings.tasks, downloads, shots)
    return Resolution(model=model, texts=texts, tasks=tasks)


def resolve_tasks(
    sources: Mapping[str, str], downloads: Path, num_fewshot: int = 0
) -> dict[str, ResolvedTask]:
    """Tasks by name; ``num_fewshot`` says whether their examples are wanted too."""
    return {
        name: zero_shot_sources.resolve_task(name, source, downloads, num_fewshot)
        for name, source in sources.items()
    }


def resolve_texts(sources: Mapping[str, str], downloads: Path) -> dict[str, ResolvedText]:
    """Texts by name."""
    return {name: core.resolve_text(source, downloads) for name, source in sources.items()}


def resolve_model(source: str, downloads: Path, registry: str | None = None) -> ResolvedModel:
    """A model wherever it lies: every file of it is hashed."""
    if not source.startswith(REGISTRY):
        return core.resolve_model(source, downloads)
    from bipline.delivery.registries.mlflow_source import download_version

    place, version = download_version(source, downloads, registry)
    return core.resolve_model(str(place), downloads).model_copy(
        update={"source": source, "revision": version}
    )


def glance(source: str, downloads: Path, checkpoint: Checkpoint | None = None) -> ResolvedModel:
    """A model by its layout alone: a weight that is read once must not be read for its hash first.

    Keys that are made of it hold in one work directory; tensors are compared as they are read.
    ``checkpoint`` is the model where it was opened already.
    """
    if source.startswith((REGISTRY, core.HUB)):
        return resolve_model(source, downloads)
    checkpoint = checkpoint or open_checkpoint(source)
    hold_to_manifest(checkpoint.folder)
    check_generation(checkpoint.folder)
    return ResolvedModel(
        source=source,
        location=source,
        tensor_digest=None,
        layout_digest=checkpoint.layout_digest,
        files={},
        tokenizer_digest=core.tokenizer_digest(checkpoint.folder),
    )


def known_checkpoint(source: str) -> Checkpoint | None:
    """The model as :func:`bipline.model.resolve.known_checkpoint`; None for a registry's version.

    That must be fetched first.
    """
    return None if source.startswith(REGISTRY) else core.known_checkpoint(source)


def local_copy(model: ResolvedModel, downloads: Path) -> Path:
    """A local directory with the model's files: where it lies, or a copy of what lies in S3.

    Raises Refused where a file is not the one that was resolved.
    """
    folder = open_folder(model.location)
    if isinstance(folder, LocalFolder):
        return folder.path
    target = downloads / "models" / model.identity[:32]
    if not target.is_dir():
        note(f"fetching {model.location} to {target}: this needs the whole model")
        with atomic_directory(target, "model-copy") as writer:
            for name, digest in model.files.items():
                if download(folder.open(name), writer.path / name).sha256 != digest:
                    raise Refused(f"{name}: changed since it was resolved; run again")
    return target


def check(settings: LineSettings, checkpoint: Checkpoint | None, thorough: bool) -> Lines:
    """The model with its size, and each text; what must be fetched is asked for.

    Raises InvalidInput for a model, text or task that cannot be had or used.
    """
    if settings.model.startswith(REGISTRY):
        from bipline.delivery.registries.mlflow_source import find_version

        known, registry = _registry(settings)
        if known:
            find_version(settings.model, registry)
    later = " (to be downloaded)" if settings.model.startswith((REGISTRY, core.HUB)) else ""
    lines = [("resolve", f"{settings.model}{_size(checkpoint)}{later}")]
    lines += [(" text", f"{name}: {_text(source)}") for name, source in settings.texts.items()]
    for name, source in settings.tasks.items() if isinstance(settings, CompressSettings) else ():
        zero_shot_sources.check_task(name, source, Path())
    return lines


def _registry(settings: LineSettings) -> tuple[bool, str | None]:
    """Whether it is known before a run starts which registry it asks, and its address.

    No address is what MLflow's variables say. What a stack of the user's tells is known only when
    it is opened.
    """
    if not isinstance(settings, CompressSettings):
        return True, None
    from bipline.delivery.registries.mlflow_service import tracking_uri

    promote, state = settings.promote, settings.state
    if named := promote.registry_uri or promote.tracking_uri:
        return True, named
    return state is not None, tracking_uri(Path(state)) if state is not None else None


def _size(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return ""
    return (
        f": {checkpoint.family.architecture}, {checkpoint.parameters:,} parameters, "
        f"{checkpoint.weight_bytes / 1e6:,.1f} MB, {checkpoint.shape.num_hidden_layers} blocks"
    )


def _text(source: str) -> str:
    if source.startswith(core.HUB):
        core.check_text(source)
        return f"{source} (to be downloaded)"
    documents = core.resolve_text(source, Path()).documents
    return f"{source}, {text_file(source).stat().st_size / 1e6:.2f} MB, {documents} documents"
