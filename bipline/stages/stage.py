"""A stage: equal inputs, settings and code give one key; what lies under it is found or produced.

A :class:`Context` is what all stages of a run share. A stage's function makes the key from the
digests of what it is given, and asks :meth:`Stage.run` for the finished directory of that key.
What is killed half way goes on from its work directory; what is finished is never made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from bipline.base.progress import heading, note
from bipline.compression.workers import Workers
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.model.memory import watching_memory
from bipline.model.opening import open_checkpoint
from bipline.settings.line import ComputeSettings
from bipline.storage.digests import digest_json
from bipline.storage.directory import DirectoryWriter, write_text
from bipline.storage.stage_key import code_digest, numerics, stage_key
from bipline.storage.store import Handle, Store
from bipline.values.comparison import Cost
from bipline.values.precision import DtypeChoice
from bipline.values.reading import read_value
from bipline.values.resolution import ResolvedModel

Value = TypeVar("Value", bound=BaseModel)
Produce = Callable[[DirectoryWriter, Path], object]
# What a stage would do, for a dry run: lines with what stands before each.
Lines = list[tuple[str, str]]
VALUE_NAME = "value.json"
# Beside a cost in its file: when the stage was done. No record holds it, so that equal stays equal.
ENDED = "ended"


@dataclass(frozen=True)
class StageReport:
    """What a driver is told when a stage is done; ``cost`` is None where it was found."""

    stage: str
    key: str
    digest: str
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """How long the stage worked: 0 where the answer lay in the Store."""
        return sum(self.cost.seconds.values()) if self.cost else 0.0


@dataclass(frozen=True)
class Context:
    """What all stages of a run share: the Store, how windows are run, the seed, who works.

    ``dtype_choice`` is what dtype auto was settled by (:mod:`.precision`), None where it was named.
    ``report`` is called after every stage. ``downloads`` is where remote sources are kept,
    ``checkpoints`` what was opened so far, by identity.
    """

    store: Store
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    seed: int = 0
    workers: Workers = field(default_factory=Workers)
    downloads: Path = Path(".bipline/downloads")
    report: Callable[[StageReport], None] = field(default=lambda report: None)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict, repr=False)
    dtype_choice: DtypeChoice | None = None

    @cached_property
    def device(self) -> torch.device:
        """The device. Raises InvalidInput or EnvironmentFailure for one that is not there."""
        return choose_device(self.compute.device)

    def opened(self, model: ResolvedModel) -> Checkpoint:
        """The model as it was resolved: opened once, so that no tensor is hashed twice in a run.

        Its weights are compared when all of them were read, which every stage that uses them
        does: taking the digest then raises Refused when it changed since.
        """
        if model.identity not in self.checkpoints:
            found = open_checkpoint(model.location, model.tensor_digest)
            self.checkpoints[model.identity] = found
        return self.checkpoints[model.identity]

    @property
    def computing(self) -> dict[str, Any]:
        """What of the compute settings may change a stage's numbers: part of its key."""
        chosen = self.compute.model_dump(include={"dtype", "micro_batch"})
        return {"device": self.device.type, **chosen}


def ended_at(store: Store, stage: str, key: str) -> datetime | None:
    """When what is stored under a key was made; None where nobody kept that."""
    told = (store.read_cost(stage, key) or {}).get(ENDED)
    return datetime.fromisoformat(told) if isinstance(told, str) else None


@dataclass(frozen=True)
class Stage:
    """A stage's name, what it makes, and the core modules whose code makes it."""

    name: str
    kind: str
    modules: tuple[str, ...]
    version: str = "1"

    def key(
        self,
        inputs: Mapping[str, str],
        settings: Any,
        computing: Mapping[str, Any] | None = None,
        modules: tuple[str, ...] | None = None,
    ) -> str:
        """The key; ``modules`` where this run uses fewer than the stage can.

        ``inputs`` maps names to digests, ``settings`` and ``computing`` are JSON.
        """
        chosen = modules or self.modules
        return stage_key(self.name, self.version, chosen, inputs, settings, computing)

    def fingerprint(self) -> str:
        """What an orchestrator's own cache must take in besides inputs and parameters."""
        code = code_digest(*self.modules)
        device = choose_device("auto").type
        told = {"version": self.version, "code": code, "numerics": numerics(), "device": device}
        return digest_json(told)

    def run(self, context: Context, key: str, produce: Produce, title: str = "") -> Handle:
        """The directory of this key: found in the Store, or produced into it.

        ``produce`` is given the directory's writer, and a work directory that outlives a kill; a
        name that it returns is that of a criterion whose sums it used.
        """
        heading(title or self.name)
        found, cost = context.store.find(self.name, key), None
        if found is not None:
            note("found in the store, not computed again")
        else:
            found, cost = self._produced(context, key, produce)
        context.report(StageReport(title or self.name, key, found.digest, cost))
        return found.model_copy(update={"key": key})

    def value(
        self,
        context: Context,
        key: str,
        kind: type[Value],
        produce: Callable[[Path], Value],
        title: str = "",
    ) -> Value:
        """The value of this key, kept as a directory with one JSON file."""

        def write(writer: DirectoryWriter, work: Path) -> None:
            write_text(writer.path / VALUE_NAME, produce(work).model_dump_json(indent=1) + "\n")

        directory = context.store.open(self.run(context, key, write, title))
        return read_value(
            directory / VALUE_NAME, kind, f"stored {self.kind}", f"delete {directory}"
        )

    def _produced(self, context: Context, key: str, produce: Produce) -> tuple[Handle, Cost | None]:
        store, start = context.store, time.perf_counter()
        # The writer ends first: work goes when what it was for is stored.
        with watching_memory() as peak, store.work(self.name, key) as work:
            if (handle := store.find(self.name, key)) is not None:  # by who held the work before
                return handle, None
            with store.write(self.name, key, self.kind) as writer:
                borrowed = produce(writer, work)
                peak.sample()
                cost = Cost(
                    sums_from=borrowed if isinstance(borrowed, str) else None,
                    seconds={self.name: round(time.perf_counter() - start, 3)},
                    peak_anonymous_bytes=peak.anonymous,
                    peak_device_bytes=peak.device,
                )
                ended = datetime.now(UTC).isoformat(timespec="seconds")
                store.write_cost(self.name, key, {**cost.model_dump(mode="json"), ENDED: ended})
        handle = store.find(self.name, key)
        if handle is None:
            raise RuntimeError(f"{store.location} has lost {self.name} {key} that was just stored")
        return handle, cost
