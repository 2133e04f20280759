"""How far compensation has come, on disk: a file of tensors and a record for each finished block.

The record is written last, so what it names is whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bipline.base.progress import note
from bipline.compression.compensation.engine import BlockCorrection
from bipline.compression.corrections import block_name, load_block, save_block
from bipline.storage.digests import digest_file
from bipline.storage.directory import write_text
from bipline.storage.strict_json import read_json
from bipline.values.compensation import BlockRecord
from bipline.values.plan import BlockPlan


@dataclass(frozen=True)
class FolderProgress:
    """Finished blocks below ``folder``."""

    folder: Path

    def load(self, index: int) -> BlockCorrection | None:
        """What an earlier run made of a block; None where it is not there, or was damaged."""
        record, path = self._record(index), self.folder / block_name(index)
        if not record.is_file():
            return None
        value = read_json(record, "record of a corrected block", f"delete {self.folder}")
        if value["tensors"] != (digest_file(path) if path.is_file() else None):
            note(f"{path}: damaged since it was written; the block is corrected again")
            return None
        return BlockCorrection(
            plan=BlockPlan.model_validate_json(json.dumps(value["plan"])),
            tensors=load_block(path) if path.is_file() else {},
            record=BlockRecord.model_validate_json(json.dumps(value["record"])),
        )

    def save(self, correction: BlockCorrection) -> None:
        """Write a block's tensors, where there are any, and then its record."""
        index = correction.record.index
        path = self.folder / block_name(index)
        path.unlink(missing_ok=True)
        if correction.tensors:
            save_block(path, correction.tensors)
        value = {
            "tensors": digest_file(path) if correction.tensors else None,
            "plan": correction.plan.model_dump(mode="json"),
            "record": correction.record.model_dump(mode="json"),
        }
        # Not sorted: a plan of blocks that were taken up must be the same text.
        write_text(self._record(index), json.dumps(value, indent=1) + "\n")

    def _record(self, index: int) -> Path:
        return self.folder / f"{Path(block_name(index)).stem}.json"
