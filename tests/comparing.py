"""Small comparisons of a tiny model, for the tests of everything that compares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bipline.comparison.engine import compare
from bipline.comparison.grid import combinations
from bipline.comparison.inputs import Inputs, named, resolve_inputs
from bipline.face.keywords import parts_of
from bipline.settings.sweep import ComparisonSettings
from bipline.values.combination import Combination
from bipline.values.comparison import Comparison
from tests.compression.test_calibrate import prose

SAMPLES, SEQLEN = 20, 16


@dataclass(frozen=True)
class Bench:
    """A model with texts in a folder, and comparisons of them."""

    model: Path
    folder: Path

    @classmethod
    def of(cls, model: Path, folder: Path) -> Bench:
        (folder / "calibration.txt").write_text(prose(1))
        (folder / "one.txt").write_text(prose(2, 60))
        (folder / "two.txt").write_text(prose(3, 60))
        return cls(model, folder)

    @property
    def texts(self) -> dict[str, str]:
        return {name: str(self.folder / f"{name}.txt") for name in ("one", "two")}

    @property
    def task_data(self) -> Path:
        """A folder with the rows of a task, ``cloze``."""
        folder = self.folder / "task-data"
        folder.mkdir(exist_ok=True)
        asked = zip(prose(4).split(". "), prose(5).split(". "), strict=False)
        rows = [
            {"query": one[:40], "choices": [one[40:60] or "a", other[40:60] or "b"], "gold": n % 2}
            for n, (one, other) in enumerate(asked)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows[:12])
        (folder / "cloze.jsonl").write_text(lines, encoding="utf-8")
        return folder

    def inputs(self) -> Inputs:
        calibrations = named("--calibration", [str(self.folder / "calibration.txt")])
        models = named("MODEL", [str(self.model)])
        return resolve_inputs(models, calibrations, self.texts, self.folder / "downloads")

    def settings(
        self,
        criteria: str = "wanda-sp",
        allocations: str = "",
        compensations: str = "",
        **axes: Any,
    ) -> ComparisonSettings:
        grid = {
            "criteria": parts_of(criteria), "allocations": parts_of(allocations),
            "compensations": parts_of(compensations), "ratios": (0.3,), **axes,
        }  # fmt: skip
        return ComparisonSettings.model_validate({
            "grid": grid,
            "calibrate": {"samples": SAMPLES, "seqlen": SEQLEN},
            "compute": {"device": "cpu"},
            "evaluate": {"protocol": {"seqlen": SEQLEN}},
        })  # fmt: skip

    def combinations(self, **axes: Any) -> list[Combination]:
        return combinations(self.settings(**axes), [self.model.name], ["calibration"])

    def compare(self, out: str, jobs: int = 1, keep: bool = False, **axes: Any) -> Comparison:
        return compare(self.settings(**axes), self.inputs(), self.folder / out, jobs, keep)

    def arguments(self, out: str, **changed: object) -> list[str]:
        """The same as a command line; a list is an option that is repeated."""
        options: dict[str, object] = {
            "out": self.folder / out, "calibration": self.folder / "calibration.txt",
            "text": [f"{name}={path}" for name, path in self.texts.items()],
            "criteria": "wanda-sp,magnitude", "ratios": "0.3", "samples": SAMPLES,
            "seqlen": SEQLEN, "evaluation-seqlen": SEQLEN, "device": "cpu",
            "state": self.folder / "state", **changed,
        }  # fmt: skip
        flags = [
            str(part)
            for name, value in options.items()
            if value is not None
            for each in (value if isinstance(value, list) else [value])
            for part in (f"--{name.replace('_', '-')}", each)
        ]
        return ["compare", str(self.model), *flags]


def figures(comparison: Comparison | dict[str, Any]) -> list[dict[str, Any]]:
    """The rows without what differs from run to run: seconds and memory."""
    if isinstance(comparison, Comparison):
        comparison = comparison.model_dump(mode="json")
    kept = [{k: v for k, v in row.items() if k != "cost"} for row in comparison["rows"]]
    return [{**row, "sums_from": comparison["rows"][n]["cost"]["sums_from"]} for n, row in
            enumerate(kept)]  # fmt: skip
