"""Where tasks come from: a file of rows, a data set at hand, or the hub, which is fetched once.

What is fetched is written as JSON Lines in the authors' columns, below a name made of the commit,
so that a later run reads the same rows without the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.model import hub_data_sets, resolve
from bipline.quality.zero_shot_data import write_data_set
from bipline.quality.zero_shot_tasks import (
    are_rows,
    examples_split,
    measured_split,
    official,
    task_of,
)
from bipline.storage.digests import digest_json
from bipline.storage.task_rows import task_digest
from bipline.values.resolution import ResolvedTask

HUB = resolve.HUB


def resolve_task(name: str, source: str, downloads: Path, num_fewshot: int = 0) -> ResolvedTask:
    """Resolve a task: a file or folder, or ``hf:`` (``hf:@revision``) for lm-eval's own data set.

    Every row is looked at. Raises InvalidInput for what cannot be measured, EnvironmentFailure
    where the hub does not answer.
    """
    if is_hub(source):
        return _fetched(name, source, downloads, num_fewshot)
    path = Path(source)
    if not path.exists() or are_rows(name, path):
        return resolve.resolve_task(source)
    return _resolved(name, source, path.absolute(), num_fewshot)


def check_task(name: str, source: str, downloads: Path) -> None:
    """The same without fetching anything: the hub is asked whether it has the data set."""
    if is_hub(source):
        hub_data_sets.dataset_commit(*_repository(name, source, official(name)))
    else:
        resolve_task(name, source, downloads)


def is_hub(source: str) -> bool:
    """Whether a task comes from the hub."""
    return source == HUB or source.startswith(f"{HUB}@")


def _resolved(name: str, source: str, path: Path, num_fewshot: int) -> ResolvedTask:
    rows = len(task_of(name, path, num_fewshot).eval_docs)
    return ResolvedTask(source=source, location=str(path), sha256=task_digest(path), rows=rows)


def _fetched(name: str, source: str, downloads: Path, num_fewshot: int) -> ResolvedTask:
    configuration = official(name)
    repository, revision = _repository(name, source, configuration)
    commit = hub_data_sets.dataset_commit(repository, revision)
    subset = configuration.get("dataset_name")
    splits = [measured_split(configuration)]
    if num_fewshot and (examples := examples_split(configuration)) not in (None, *splits):
        splits.append(str(examples))
    place = downloads / "tasks" / digest_json([repository, commit, subset, splits])
    if not place.is_dir():
        rows = {
            each: hub_data_sets.download_rows(repository, commit, subset, each) for each in splits
        }
        write_data_set(place, rows)
    return _resolved(name, f"{HUB}{repository}@{commit}", place.absolute(), num_fewshot)


def _repository(name: str, source: str, configuration: dict[str, Any]) -> tuple[str, str]:
    """The data set's repository and revision. Raises InvalidInput for one of several files."""
    options = configuration.get("dataset_kwargs") or {}
    if options.keys() - {"trust_remote_code"} or not configuration.get("dataset_path"):
        reason = "lm-eval reads its data set in a way of its own; save it and give --task-data"
        raise InvalidInput(f"task {name}: {reason}")
    return configuration["dataset_path"], source.removeprefix(HUB).removeprefix("@") or "main"
