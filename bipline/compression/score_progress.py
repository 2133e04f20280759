"""How far scoring has come, on disk: one record per finished block.

A record names the block's sums and scores, the hidden states that leave it, and the digests of
the tensors that were read for it. It is written last, so what it names is whole. A run that
takes it up compares all of them and goes on after the newest block that stands.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bipline.base.errors import Refused
from bipline.base.progress import note
from bipline.compression.criteria.interface import BlockScores, Sums
from bipline.model.checkpoint import Checkpoint
from bipline.model.hidden_states import HiddenStates
from bipline.storage.digests import digest_file
from bipline.storage.directory import write_text
from bipline.storage.strict_json import read_json

BlockOutcome = tuple[Sums, BlockScores | None]


@dataclass(frozen=True)
class ScoreProgress:
    """The records in ``folder`` of one scoring pass over ``checkpoint``."""

    folder: Path
    checkpoint: Checkpoint

    def save(self, index: int, states: HiddenStates, finished: BlockOutcome) -> None:
        """Record a finished block; ``states`` are its outputs."""
        sums, scores = finished
        tensors = {f"sums.{name}": value.contiguous() for name, value in sums.items()}
        if scores is not None:
            tensors.update({f"scores.{name}": value for name, value in scores.tensors().items()})
        path = self._sums(index)
        temporary = path.with_suffix(".partial")
        save_file({name: value.cpu() for name, value in tensors.items()}, temporary)
        temporary.replace(path)
        names = self.checkpoint.stored_names(index).values()
        record = {
            "sums": digest_file(path),
            "states": states.digest,
            "source": self.checkpoint.state,
            "tensors": {name: self.checkpoint.digest_tensor(name) for name in names},
        }
        write_text(self._record(index), json.dumps(record, indent=1, sort_keys=True) + "\n")

    def finished(self, states: HiddenStates, at_most: int | None = None) -> int:
        """Blocks that need not run again, whose states are then taken up; 0 starts anew.

        ``at_most`` limits them, where another worker has finished fewer.
        """
        records = self._records()[:at_most]
        for count in range(len(records), max(0, len(records) - 2), -1):
            try:
                states.resume(count, records[count - 1]["states"])
            except Refused as error:
                note(f"{error}; going back one block")
                continue
            return count
        return 0

    def load(self, count: int) -> list[BlockOutcome]:
        """What the first ``count`` blocks gave; the model's tensors are held to their digests.

        Where the place says that the model's files changed since, they are compared now.
        Raises InvalidInput when the model's content is another one.
        """
        records = self._records()[:count]
        refusal = (
            f"{self.checkpoint.location} changed since its blocks were scored (delete "
            f"{self.folder} to score again)"
        )
        digests = {name: d for record in records for name, d in record["tensors"].items()}
        self.checkpoint.digests.expect(digests, refusal)
        if any(record["source"] != self.checkpoint.state for record in records):
            note("the model's files have another time than before; comparing their content")
            for name in digests:
                self.checkpoint.digest_tensor(name)
        return [_split(load_file(self._sums(index))) for index in range(count)]

    def _records(self) -> list[dict[str, Any]]:
        """Records from the first block on, as far as they and their sums are whole."""
        records: list[dict[str, Any]] = []
        while (path := self._record(len(records))).is_file():
            record = read_json(path, "record of a scored block", f"delete {self.folder}")
            sums = self._sums(len(records))
            if not sums.is_file() or digest_file(sums) != record["sums"]:
                break
            records.append(record)
        return records

    def _record(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.json"

    def _sums(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def _split(tensors: dict[str, torch.Tensor]) -> BlockOutcome:
    parts: dict[str, dict[str, torch.Tensor]] = {"sums": {}, "scores": {}}
    for name, value in tensors.items():
        part, _, local = name.partition(".")
        parts[part][local] = value
    return parts["sums"], BlockScores(**parts["scores"]) if parts["scores"] else None
