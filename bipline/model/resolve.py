"""Resolve: from the names a user gives to exact revisions and the digest of every file.

Nothing here is remembered between runs: each run asks the hub for the commit and hashes every
file again, so bytes that changed behind an unchanged name are seen, and all later stages can
be keyed by digests alone. A text from the hub is written once per commit as JSON Lines, as a
data set has no file that every later stage could read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml

from bipline.base.errors import InvalidInput, Refused
from bipline.model import hub, hub_data_sets
from bipline.model.checkpoint import Checkpoint
from bipline.model.finished import hold_to_manifest
from bipline.model.hub_outline import open_outline
from bipline.model.loading import check_generation
from bipline.model.opening import open_checkpoint
from bipline.model.shard_digests import digest_shards
from bipline.model.side_files import is_licence, is_model_file, is_tokenizer_file
from bipline.storage.digests import digest_bytes, digest_file, digest_json, digest_listing
from bipline.storage.directory import environment_failure, write_text
from bipline.storage.documents import CHAT, read_documents, text_file, write_rows
from bipline.storage.folder import S3_SCHEME, Folder, LocalFolder, open_folder
from bipline.storage.strict_json import parse_object
from bipline.storage.task_rows import read_task_rows
from bipline.values.origin import SECTION, config_digest
from bipline.values.resolution import CONFIG, ResolvedModel, ResolvedTask, ResolvedText

HUB = "hf:"
PLACES = "a directory, hf:org/name@revision, s3://bucket/prefix or models:/name@alias"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TEXT_QUERY = ("subset", "split", "field", "documents", "data_files", "rows")
CHAT_ROWS = "chat"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(source: str, downloads: Path) -> ResolvedModel:
    """Resolve a model directory, an ``s3://`` prefix or ``hf:org/name@revision``.

    The revision is ``main`` unless it says otherwise. Raises InvalidInput for a source or a model
    that cannot be used, EnvironmentFailure when the hub does not answer or the disk is full.
    """
    if not source.startswith(HUB):
        _refuse_scheme(source, PLACES, S3_SCHEME)
        return _resolved_folder(source, open_folder(source), None)
    parsed = _model_of_hub(source)
    directory, commit = hub.download_model(parsed.repository, parsed.revision, downloads)
    resolved = _resolved_folder(source, open_folder(directory), commit)
    hub.check_download(parsed.repository, commit, directory, resolved.files)
    return resolved


def fetch_repository(source: str, directory: Path) -> str:
    """Every file of ``hf:org/name@revision`` into a new folder, but for git's own; its commit.

    Raises as :func:`resolve_model`.
    """
    repository, revision = _place(_model_of_hub(source))
    sizes, commit = hub.list_repository(repository, revision)
    wanted = [name for name in sizes if not name.startswith(".git")]
    with hub.hub_failures(source, "model"):
        hub.fetch_files(repository, commit, directory, wanted)
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # what the library keeps there
    return commit


def known_checkpoint(source: str) -> Checkpoint:
    """The model before any work: opened where it lies, of the hub's an outline without weights.

    Raises InvalidInput for what is not there or cannot be used, EnvironmentFailure when the hub
    does not answer.
    """
    if source.startswith(HUB):
        return open_outline(*_place(_model_of_hub(source)))
    _refuse_scheme(source, PLACES, S3_SCHEME)
    return open_checkpoint(source)


def check_text(source: str) -> None:
    """Ask the hub for a text; nothing is downloaded, and a file is left alone.

    Raises as :func:`known_checkpoint`.
    """
    parsed = _parse_hub(source)
    _selection(source, parsed.query)
    hub_data_sets.dataset_commit(*_place(parsed))


def tokenizer_digest(folder: Folder) -> str:
    """The digest of the files that make a model's tokenizer.

    Raises InvalidInput where there is none.
    """
    names = folder.names()
    if not any(name in names for name in VOCABULARIES):
        raise InvalidInput(
            f"{folder.location}: no tokenizer; one of {', '.join(VOCABULARIES)} is needed"
        )
    own = filter(is_tokenizer_file, names)
    return digest_listing({name: digest_bytes(folder.read(name)) for name in own})


def _model_of_hub(source: str) -> _HubSource:
    parsed = _parse_hub(source)
    if parsed.query:
        raise InvalidInput(f"{source}: a model takes no query; give hf:org/name@revision")
    return parsed


def _place(parsed: _HubSource) -> tuple[str, str]:
    return parsed.repository, parsed.revision


def _resolved_folder(source: str, folder: Folder, commit: str | None) -> ResolvedModel:
    checkpoint = open_checkpoint(folder.location)
    tokenizer = tokenizer_digest(folder)
    check_generation(folder)
    # First: the tensors' digests are known then, and no weight is read a second time.
    shards = digest_shards(checkpoint)
    files = _digests(folder, shards)
    hold_to_manifest(folder, files)
    local = isinstance(folder, LocalFolder)
    return ResolvedModel(
        source=source,
        revision=commit,
        location=str(Path(folder.location).absolute()) if local else folder.location,
        tensor_digest=checkpoint.tensor_digest,
        config_digest=_config_digest(folder),
        files=files,
        tokenizer_digest=tokenizer,
        licence=next(licences_of(folder), None),
    )


def _digests(folder: Folder, shards: dict[str, str]) -> dict[str, str]:
    """Hash the files that make the model but for its ``shards``, whose digests are known."""
    return {
        name: shards.get(name) or digest_bytes(folder.read(name))
        for name in folder.names()
        if is_model_file(name)
    }


def _config_digest(folder: Folder) -> str | None:
    """The digest of a config.json without its origin; None where it names none."""
    config = parse_object(folder.read(CONFIG), f"{folder.location}/{CONFIG}", "config", "")
    return config_digest(config) if SECTION in config else None


def licences_of(folder: Folder) -> Iterator[str]:
    """What a model says of its licence: the first line of its file, and README.md's front matter.

    Either may be missing.
    """
    names = folder.names()
    lines = (line for name in names if is_licence(name) for line in _lines(folder.read(name)))
    if first := next(lines, None):
        yield first
    readme = folder.read("README.md") if "README.md" in names else b""
    if declared := _in_front_matter(readme.decode("utf-8", "replace")):
        yield declared


def _lines(file: bytes) -> list[str]:
    lines = (line.strip() for line in file.decode("utf-8", "replace").splitlines())
    return [line for line in lines if line]


def _in_front_matter(text: str) -> str | None:
    front_matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        declared = yaml.safe_load(front_matter.group(1)) if front_matter else None
    except yaml.YAMLError:
        return None
    licence = declared.get("license") if isinstance(declared, dict) else None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence and str(licence)


def resolve_text(source: str, downloads: Path) -> ResolvedText:
    """Resolve a file (see :mod:`bipline.storage.documents`), or a data set of the hub.

    ``hf:org/name@revision?subset=...&split=...&field=...&documents=...&data_files=...`` takes
    the first ``documents`` rows of a split; every key may be left out. With ``rows=chat`` rows
    are those that ``chat:FILE`` reads: of messages, or of Alpaca's three columns.
    Raises InvalidInput for what cannot be used, EnvironmentFailure when the hub does not answer
    or the disk is full.
    """
    if source.startswith(HUB):
        return _resolved_data_set(source, downloads)
    _refuse_scheme(source, "a .txt or .jsonl file or hf:org/name@revision")
    return _resolved_text(source, source, None)


def _resolved_text(source: str, place: str, commit: str | None) -> ResolvedText:
    path, kind = text_file(place), CHAT if place.startswith(CHAT) else ""
    documents = sum(1 for document in read_documents(place, tell=True) if document.strip())
    return ResolvedText(
        source=source,
        revision=commit,
        location=f"{kind}{path.absolute()}",
        sha256=digest_file(path),
        documents=documents,
    )


def _resolved_data_set(source: str, downloads: Path) -> ResolvedText:
    parsed = _parse_hub(source)
    selection = _selection(source, parsed.query)
    commit = hub_data_sets.dataset_commit(parsed.repository, parsed.revision)
    name = digest_json([parsed.repository, commit, selection])
    path = downloads / "texts" / f"{name}.jsonl"
    receipt = path.with_suffix(".sha256")
    chats = "rows" in selection
    if not (path.is_file() and receipt.is_file()):
        read = _chats_of_hub if chats else _texts_of_hub
        _write_whole(path, read(source, parsed.repository, commit, selection))
        write_text(receipt, f"{digest_file(path)}\n")
    text = _resolved_text(source, f"{CHAT if chats else ''}{path}", commit)
    if receipt.read_text(encoding="utf-8", errors="replace").strip() != text.sha256:
        raise Refused(f"{path}: changed since it was downloaded; delete it and {receipt.name}")
    return text


def _texts_of_hub(
    source: str, repository: str, commit: str, selection: dict[str, Any]
) -> list[dict[str, Any]]:
    documents, _ = hub_data_sets.download_documents(repository, commit, **selection)
    if not any(document.strip() for document in documents):
        raise InvalidInput(f"{source}: holds no text")
    return [{"text": document} for document in documents]


def _chats_of_hub(
    source: str, repository: str, commit: str, selection: dict[str, Any]
) -> list[dict[str, Any]]:
    asked = {key: value for key, value in selection.items() if key not in ("field", "rows")}
    return hub_data_sets.download_chats(repository, commit, **asked)


def _write_whole(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write under a name of this process, then rename: no reader sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(temporary, rows)
        temporary.replace(path)
    except OSError as error:
        raise environment_failure(error) or error from None
    finally:
        temporary.unlink(missing_ok=True)


def resolve_task(source: str) -> ResolvedTask:
    """Resolve the JSON Lines of a zero-shot task.

    Every row is checked. Raises InvalidInput where the file is missing or one cannot be measured.
    """
    if source.startswith(HUB):
        raise InvalidInput(f"{source}: a task is a .jsonl file, or hf: for lm-eval's own")
    _refuse_scheme(source, "a .jsonl file")
    path = Path(source)
    rows = len(read_task_rows(path)[1])
    location = str(path.absolute())
    return ResolvedTask(source=source, location=location, sha256=digest_file(path), rows=rows)


@dataclass(frozen=True)
class _HubSource:
    repository: str
    revision: str
    query: list[tuple[str, str]] = field(default_factory=list)


def _parse_hub(source: str) -> _HubSource:
    place, _, query = source.removeprefix(HUB).partition("?")
    repository, at, revision = place.partition("@")
    if not REPOSITORY.fullmatch(repository) or (at and not revision):
        raise InvalidInput(f"{source}: not a hub source; give hf:org/name@revision")
    return _HubSource(
        repository, revision or "main", parse_qsl(query, keep_blank_values=True, separator="&")
    )


def _selection(source: str, query: list[tuple[str, str]]) -> dict[str, Any]:
    """The arguments of :func:`hub_data_sets.download_documents` that a query asks for, checked."""
    selection: dict[str, Any] = {"subset": None, "split": "train", "field": "text"}
    selection |= {"documents": None, "data_files": None}
    for key, value in query:
        if key not in TEXT_QUERY:
            nearest = get_close_matches(key, TEXT_QUERY, n=1, cutoff=0.0)
            raise InvalidInput(f"{source}: unknown key {key!r}; did you mean {nearest[0]!r}?")
        if not value:
            raise InvalidInput(f"{source}: key {key!r} has no value; leave it out or give one")
        selection[key] = _number_of_documents(source, value) if key == "documents" else value
    if selection.get("rows", CHAT_ROWS) != CHAT_ROWS:
        raise InvalidInput(f"{source}: rows={selection['rows']!r} is unknown; give {CHAT_ROWS}")
    if "rows" in selection and "field" in dict(query):
        raise InvalidInput(f"{source}: rows={CHAT_ROWS} reads its own columns; leave field out")
    if selection["data_files"]:
        _refuse_outside(source, selection["data_files"])
    return selection


def _number_of_documents(source: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()) or int(value) == 0:
        raise InvalidInput(f"{source}: documents={value!r} is not a positive whole number")
    return int(value)


def _refuse_outside(source: str, name: str) -> None:
    """A data file belongs to the repository, or the commit would not say what was read."""
    if "://" in name or name.startswith("/") or ".." in name.split("/"):
        raise InvalidInput(f"{source}: data_files={name!r} is not a path inside the repository")


def _refuse_scheme(source: str, instead: str, allowed: str = "\0") -> None:
    other = "://" in source and not source.startswith(allowed)
    if other or source.startswith("models:/"):
        raise InvalidInput(f"{source}: not served by this version; give {instead}")
