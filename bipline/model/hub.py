"""The hub: how models are downloaded, and what its failures mean.

A revision is made an exact commit first and everything is fetched by that commit, so a branch
that moves meanwhile changes nothing. Only JSON, safetensors, tokenizers and licences come
down: no pickle, no Python file, and the configuration is checked before the weights are
fetched. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what the libraries say; they read them
when imported, which happens inside the functions so that other commands stay fast.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput
from bipline.base.extras import require
from bipline.base.progress import note
from bipline.base.waiting import asks_to_wait
from bipline.model.families import family_of
from bipline.model.opening import ADAPTER_FILE, CONVERTING, PICKLED, read_config
from bipline.model.side_files import is_model_file
from bipline.storage.directory import environment_failure
from bipline.storage.names import is_plain_name
from bipline.storage.strict_json import LARGEST_BYTES

README = "README.md"
WEIGHTS = ".safetensors"
COMMIT = re.compile("[0-9a-f]{40}")
# More files than any model has, and more bytes than any file beside weights has.
MOST_FILES = 100_000
LARGEST_SMALL_FILE = LARGEST_BYTES
TIMEOUT_SECONDS = 30
# Client errors that pass: request timeout and too many requests.
PASSING_CLIENT_ERRORS = {408, 429}


def download_model(repository: str, revision: str, downloads: Path) -> tuple[Path, str]:
    """Download a model repository; its directory below ``downloads`` and its commit.

    A download that was interrupted is continued, a finished one is not repeated.
    Raises InvalidInput for an unknown repository or revision and for a model that cannot be
    used, EnvironmentFailure when the hub does not answer or the disk is full.
    """
    what, (sizes, commit) = f"hf:{repository}@{revision}", list_model(repository, revision)
    directory = downloads / "models" / folder_name(repository, commit)
    note(f"downloading {what} (commit {commit[:12]}) to {directory}")
    small = small_files(what, sizes)
    with hub_failures(what, "model"):
        fetch_files(repository, commit, directory, small)
    family_of(str(read_config(directory).get("model_type")))
    with hub_failures(what, "model"):
        fetch_files(repository, commit, directory, [*small, *weight_files(sizes)])
    return directory, commit


def list_model(repository: str, revision: str) -> tuple[dict[str, int], str]:
    """Bytes of every file of a model's revision, and its commit.

    Raises as :func:`download_model` does.
    """
    sizes, commit = list_repository(repository, revision)
    _refuse_unsafe(f"hf:{repository}@{revision}", list(sizes))
    return sizes, commit


def list_repository(repository: str, revision: str) -> tuple[dict[str, int], str]:
    """As :func:`list_model`, whatever the repository holds."""
    hub = require("huggingface_hub", "hub")
    what = f"hf:{repository}@{revision}"
    with hub_failures(what, "model"):
        info = hub.HfApi().model_info(
            repository, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
        sizes = _sizes(info, what)
    commit = commit_of(info, what)
    if COMMIT.fullmatch(revision) and commit != revision:
        raise EnvironmentFailure(f"{what}: {_endpoint()} gives {commit} for it, another commit")
    return sizes, commit


def confirm_commit(repository: str, commit: str) -> frozenset[str]:
    """The tags of a model whose branch main is at this commit, as it is asked for in three ways.

    Raises EnvironmentFailure where the hub says something else: the branch moved meanwhile, or the
    hub contradicts itself.
    """
    hub = require("huggingface_hub", "hub")
    what = f"hf:{repository}@{commit}"
    with hub_failures(what, "model"):
        api = hub.HfApi()
        main = api.model_info(repository, timeout=TIMEOUT_SECONDS)
        itself = api.model_info(repository, revision=commit, timeout=TIMEOUT_SECONDS)
        file = hub.get_hf_file_metadata(
            hub.hf_hub_url(repository, "config.json", revision=commit), timeout=TIMEOUT_SECONDS
        )
        told = {
            "its branch main": commit_of(main, what), "the commit": commit_of(itself, what),
            "its config.json": file.commit_hash,
        }  # fmt: skip
        tags = frozenset(map(str, main.tags or ()))
    for asked, answer in told.items():
        if answer != commit:
            raise EnvironmentFailure(
                f"{what}: asked for {asked}, {_endpoint()} answers with {answer!a:.60}; the branch "
                "moved just now, or the hub is not to be trusted"
            )
    return tags


def folder_name(repository: str, commit: str) -> str:
    """What a model's folder is called on this machine."""
    return f"{repository.replace('/', '--')}@{commit}"


def weight_files(names: Iterable[str]) -> list[str]:
    """The files that hold a model's weights."""
    return [name for name in names if is_model_file(name) and name.endswith(WEIGHTS)]


def small_files(what: str, sizes: Mapping[str, int]) -> list[str]:
    """What is downloaded beside the weights. Raises InvalidInput for one that is not small."""
    wanted = [name for name in sizes if is_model_file(name) or name == README]
    small = [name for name in wanted if not name.endswith(WEIGHTS)]
    for name in small:
        if not 0 <= sizes[name] <= LARGEST_SMALL_FILE:
            raise InvalidInput(
                f"{what}: {name} has {sizes[name]} bytes; at most {LARGEST_SMALL_FILE}"
            )
    return small


def fetch_files(repository: str, commit: str, directory: Path, wanted: list[str]) -> None:
    """Download files by their names into a folder. Raises EnvironmentFailure where one is not."""
    hub = require("huggingface_hub", "hub")
    hub.snapshot_download(
        repository, revision=commit, local_dir=directory, allow_patterns=list(map(escape, wanted))
    )
    # The library answers with what is there when the hub goes away between two requests.
    for name in wanted:
        if not (directory / name).is_file():
            raise EnvironmentFailure(f"hf:{repository}: {name} did not arrive; run again")


def _sizes(info: Any, what: str) -> dict[str, int]:
    """Bytes of every file by name, 0 where the hub does not say.

    Raises EnvironmentFailure for a listing that no repository has: its names become files here.
    """
    files = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    for name, size in files.items():
        if not (isinstance(name, str) and is_plain_name(name) and isinstance(size, int)):
            shown = f"{repr(name)[:60]} of {repr(size)[:20]} bytes"
            raise EnvironmentFailure(f"{what}: {_endpoint()} lists {shown}, which is no file")
    if len(files) > MOST_FILES:
        raise EnvironmentFailure(
            f"{what}: {_endpoint()} lists {len(files)} files; check HF_ENDPOINT"
        )
    return files


def _endpoint() -> str:
    return f"the hub at {require('huggingface_hub.constants', 'hub').ENDPOINT}"


def _refuse_unsafe(what: str, names: list[str]) -> None:
    top = [name for name in names if "/" not in name]
    if ADAPTER_FILE in top:
        raise InvalidInput(
            f"{what}: {ADAPTER_FILE} makes transformers add an adapter to the weights; "
            "choose a revision without one"
        )
    if any(name.endswith(WEIGHTS) for name in top):
        return
    endings = tuple(pattern.removeprefix("*") for pattern in PICKLED)
    for name in sorted(top):
        if name.endswith(endings):
            raise InvalidInput(
                f"{what}: only pickled weights ({name}), which can run code; "
                f"choose a revision with safetensors, or convert them ({CONVERTING})"
            )
    raise InvalidInput(f"{what}: the repository holds no safetensors weights")


def check_download(
    repository: str, commit: str, directory: Path, digests: Mapping[str, str]
) -> None:
    """Compare hashed files of a download with what the hub says the commit holds.

    A file that differs is removed, so that the next run fetches it again.
    Raises EnvironmentFailure naming it, or when the hub does not answer.
    """
    hub = require("huggingface_hub", "hub")
    what = f"hf:{repository}@{commit}"
    with hub_failures(what, "model"):
        info = hub.HfApi().model_info(
            repository, revision=commit, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
        published = {sibling.rfilename: sibling for sibling in info.siblings or []}
        damaged = [
            name for name, digest in digests.items()
            if name in published and _differs(directory / name, digest, published[name])
        ]  # fmt: skip
    for name in damaged:
        (directory / name).unlink()
        raise EnvironmentFailure(f"{what}: {name} arrived damaged and was removed; run again")


def _differs(path: Path, sha256: str, published: Any) -> bool:
    """Large files are published by their sha256, small ones by the name git gives them."""
    if published.size not in (None, path.stat().st_size):
        return True
    if published.lfs:
        return bool(published.lfs.sha256 != sha256)
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return bool(published.blob_id and published.blob_id != blob)


def commit_of(info: Any, what: str) -> str:
    """The commit, which names a folder here: 40 hex digits and nothing else."""
    if not (isinstance(info.sha, str) and COMMIT.fullmatch(info.sha)):
        shown = repr(info.sha)[:60]
        raise EnvironmentFailure(
            f"{what}: {_endpoint()} names {shown} as its commit, not 40 hex digits"
        )
    return info.sha


@contextmanager
def hub_failures(what: str, kind: str) -> Iterator[None]:
    """Turn the libraries' failures into one line each; leave programming errors alone."""
    try:
        yield
    except BiplineError:
        raise
    except Exception as error:
        failure = _failure(error, what, kind)
        if failure is None:
            raise
        raise failure from error


# What the library raises where an answer is no answer of a hub: HTML, another shape, no field.
MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def _failure(error: Exception, what: str, kind: str) -> BiplineError | None:
    errors = require("huggingface_hub.errors", "hub")
    if isinstance(error, errors.GatedRepoError):
        return InvalidInput(f"{what}: access must be granted first; ask for it and set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return InvalidInput(f"{what}: no such revision; name a branch, a tag or a commit")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return InvalidInput(f"{what}: no such {kind}, or HF_TOKEN gives no access to it")
    if isinstance(error, errors.HfHubHTTPError) and _is_refusal(error.response.status_code):
        status = error.response.status_code
        return InvalidInput(f"{what}: the hub refused it (HTTP {status}); check name and HF_TOKEN")
    return _unreachable(error, what)


def _is_refusal(status: int) -> bool:
    return 400 <= status < 500 and status not in PASSING_CLIENT_ERRORS


def _unreachable(error: Exception, what: str) -> EnvironmentFailure | None:
    errors = require("huggingface_hub.errors", "hub")
    if errors.OfflineModeIsEnabled in (type(error), type(error.__cause__)):
        return EnvironmentFailure(f"{what}: HF_HUB_OFFLINE forbids the hub; unset it")
    # ``errors.HTTPError`` is the base class of whichever HTTP client the library is built on.
    transport = (errors.HTTPError, errors.LocalEntryNotFoundError, errors.XetDownloadError)
    # The libraries raise bare OSErrors, without a number, for downloads that broke off.
    broke_off = isinstance(error, OSError) and error.errno is None
    if isinstance(error, (*transport, ConnectionError, TimeoutError)) or broke_off:
        said = first_lines(error, lines=1)
        response = getattr(error, "response", None)
        wait = asks_to_wait(response.headers) if response is not None else ""
        return EnvironmentFailure(
            f"{what}: {_endpoint()} did not serve it ({said}); try again later{wait}"
        )
    if isinstance(error, MISSHAPEN):
        return EnvironmentFailure(
            f"{what}: {_endpoint()} does not answer as a hub does ({type(error).__name__}: "
            f"{first_lines(error, lines=1)[:100]}); check HF_ENDPOINT and the proxy"
        )
    return environment_failure(error) if isinstance(error, OSError) else None


def first_lines(error: Exception, lines: int) -> str:
    """The beginning of a library's message as one line: the choices stand on its second one."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said[:lines]) or type(error).__name__
