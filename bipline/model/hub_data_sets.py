"""Data sets of the hub: their commits, texts and rows, streamed without a cache of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.base.extras import check, require
from bipline.base.progress import note
from bipline.model.hub import TIMEOUT_SECONDS, commit_of, first_lines, hub_failures


def dataset_commit(repository: str, revision: str) -> str:
    """The commit a revision of a data set stands for now.

    Raises InvalidInput for an unknown one and without the extra ``hub``, by which its texts would
    be read; EnvironmentFailure when the hub does not answer.
    """
    check("hub", f"text hf:{repository}")
    hub = require("huggingface_hub", "hub")
    what = f"hf:{repository}@{revision}"
    with hub_failures(what, "data set"):
        info = hub.HfApi().dataset_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
    return commit_of(info, what)


def download_documents(
    repository: str,
    revision: str,
    subset: str | None = None,
    split: str = "train",
    field: str = "text",
    documents: int | None = None,
    data_files: str | None = None,
) -> tuple[list[str], str]:
    """The first ``documents`` texts of a data set (all of them for None) and its commit.

    The rows are streamed, so a thousand documents of a large set cost little. Blank rows stay:
    they belong to what published perplexities are measured on.
    Raises InvalidInput for an unknown repository, revision, subset, split, file or field, and
    without the extra ``hub``; EnvironmentFailure when the hub does not answer.
    """
    commit = dataset_commit(repository, revision)
    what = f"hf:{repository}@{revision}"
    note(f"reading {what} (commit {commit[:12]})")
    with _rows(what, repository, commit, subset, split, data_files) as rows:
        found = list(_texts(what, islice(rows, documents), field))
        whole = [text for text in found if text is not None]
        if len(whole) < len(found):
            note(f"{what}: {len(found) - len(whole)} rows whose text is null were left out")
        return whole, commit


def download_rows(
    repository: str, commit: str, subset: str | None, split: str
) -> list[dict[str, Any]]:
    """All rows of a split of a data set at a commit, every column of them.

    Raises InvalidInput and EnvironmentFailure as :func:`download_documents`.
    """
    what = f"hf:{repository}@{commit[:12]}"
    note(f"reading {what}, split {split}")
    with _rows(what, repository, commit, subset, split) as rows:
        return list(rows)


@contextmanager
def _rows(
    what: str,
    repository: str,
    commit: str,
    subset: str | None,
    split: str,
    data_files: str | None = None,
) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows of a split, streamed within the block; ``what`` names them in errors."""
    with (
        hub_failures(what, "data set"),
        _data_set_failures(what, data_files),
        # An empty cache: the library would fall back to what an earlier run left in the user's.
        TemporaryDirectory() as cache,
    ):
        rows = require("datasets", "hub").load_dataset(
            # The prefix keeps a local folder of the same name from being read instead.
            f"hf://datasets/{repository}",
            name=subset,
            data_files={split: data_files} if data_files else None,
            split=split,
            revision=commit,
            streaming=True,
            cache_dir=cache,
        )
        yield iter(rows)


def _texts(what: str, rows: Iterable[dict[str, Any]], field: str) -> Iterator[str | None]:
    for row in rows:
        if field not in row:
            raise InvalidInput(f"{what}: no field {field!r}; its fields: {', '.join(sorted(row))}")
        text = row[field]
        if not isinstance(text, str | None):
            raise InvalidInput(f"{what}: field {field!r} holds {type(text).__name__}, not text")
        yield text


@contextmanager
def _data_set_failures(what: str, data_files: str | None) -> Iterator[None]:
    """Unknown subsets, splits and files, and rows that cannot be read, are bad input."""
    errors = require("huggingface_hub.errors", "hub")
    unreadable = require("datasets.exceptions", "hub").DatasetsError
    try:
        yield
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError):
        raise
    except (unreadable, FileNotFoundError, ValueError) as error:
        if data_files and isinstance(error, FileNotFoundError):
            raise InvalidInput(f"{what}: no data file {data_files!r} in the repository") from error
        raise InvalidInput(f"{what}: {first_lines(error, lines=2)}") from error
