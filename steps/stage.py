"""What the steps share: the Store beside ZenML's artifacts, one key per stage, two memories.

ZenML skips a step whose parameters, inputs' content hashes and fingerprint it has seen. Where
it does not, the Store answers with the finished directory of the same stage key. The first is
quick; the second is exact, and holds when ZenML's database is new or a run was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator
from zenml import get_step_context, log_metadata
from zenml.client import Client
from zenml.config.cache_policy import CachePolicy

import materializers  # noqa: F401  (its import tells ZenML how our types are stored)
from bipline.base.progress import heading, note
from bipline.compression.allocation.problem import Windows
from bipline.compression.calibrate import load_calibration
from bipline.compression.computing import Computing
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device, torch_dtype
from bipline.model.opening import open_checkpoint
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.stage_key import code_digest, numerics, stage_key
from bipline.storage.store import Handle, LocalStore, store_at
from bipline.storage.work import work_directory
from bipline.values.resolution import Resolution

Value = TypeVar("Value", bound=BaseModel)
VALUE_NAME = "value.json"


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


# Parameters come back from ZenML's database as JSON, where a tuple is a list; the strict
# sections accept tuples only.
FROM_JSON = BeforeValidator(_tuples)


def store() -> LocalStore:
    """The Store of the active stack, beside ZenML's own artifacts."""
    return store_at(f"{Client().active_stack.artifact_store.path}/bipline")


@dataclass(frozen=True)
class Stage:
    """A stage: its name, the version of its step, and the core modules whose code it runs."""

    name: str
    version: str
    modules: tuple[str, ...]

    def fingerprint(self) -> str:
        """What ZenML's cache key takes in besides inputs and parameters."""
        code = code_digest(*self.modules)
        return digest_json({"version": self.version, "code": code, "numerics": numerics()})

    def key(
        self,
        inputs: Mapping[str, str],
        section: BaseModel,
        modules: tuple[str, ...] | None = None,
    ) -> str:
        """The stage key; ``modules`` where this run uses fewer than the stage can."""
        chosen = modules or self.modules
        settings = section.model_dump(mode="json")
        return stage_key(self.name, chosen, inputs, settings, self.version)

    def stored(self, key: str, kind: str, produce: Callable[[DirectoryWriter], object]) -> Handle:
        """The directory of this key: found in the Store, or produced and written to it."""
        start = time.perf_counter()
        heading(get_step_context().step_run.name)
        found = store().find(self.name, key)
        if found is not None:
            note("found in the store, not computed again")
        else:
            with store().write(self.name, key, kind) as writer:
                produce(writer)
        handle = found or Handle.to_directory(store().place(self.name, key))
        log_metadata(
            {
                "version": self.version,
                "stage_key": key,
                "reused": found is not None,
                "work_seconds": round(time.perf_counter() - start, 3),
                "output_digest": handle.digest,
            }
        )
        return handle

    @contextmanager
    def work(self, key: str) -> Iterator[Path]:
        """A work directory beside the output of this key, for a stage that can go on."""
        place = store().place(self.name, key)
        with work_directory(place.with_name(f"{place.name}.work")) as work:
            yield work

    def stored_value(
        self, key: str, kind: str, value_type: type[Value], produce: Callable[[], Value]
    ) -> Value:
        """The value of this key, kept in the Store as a directory with one JSON file."""

        def write(writer: DirectoryWriter) -> None:
            write_text(writer.path / VALUE_NAME, produce().model_dump_json(indent=1) + "\n")

        directory = self.stored(key, kind, write).open()
        text = (directory / VALUE_NAME).read_text(encoding="utf-8")
        return value_type.model_validate_json(text)


def cached_by(fingerprint: str) -> CachePolicy:
    """Cache by parameters, content of inputs, and a function's result given by its full name.

    The step's own source is left out: an edited comment changes nothing, and an edit that does
    comes with a new version.
    """
    return CachePolicy(
        include_step_code=False,
        include_artifact_ids=False,
        include_artifact_values=True,
        include_step_parameters=True,
        cache_func=fingerprint,
    )


def dense_checkpoint(inputs: Resolution) -> Checkpoint:
    """Open the model that was resolved.

    Its weights are compared when all of them were read, which every stage that uses them does:
    taking the digest then raises Refused when it changed since.
    """
    return open_checkpoint(inputs.model.location, inputs.model.tensor_digest)


def calibration_windows(
    checkpoint: Checkpoint, calibration: Handle, dtype: str, device: str
) -> Windows:
    """The windows of a stored calibration set and how a stage runs them."""
    drawn = load_calibration(Path(calibration.location))
    computing = Computing(torch_dtype(dtype), choose_device(device))
    fitting = computing.within(None, checkpoint, drawn.token_ids)
    return Windows(drawn.token_ids, fitting, drawn.digest)


def text_digest(inputs: Resolution) -> str:
    """The digest of the texts and tasks by name, whatever model they are read for."""
    texts = {name: text.sha256 for name, text in inputs.texts.items()}
    tasks = {name: task.sha256 for name, task in inputs.tasks.items()}
    return digest_json({"texts": texts, "tasks": tasks})
