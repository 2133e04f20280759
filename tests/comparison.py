"""Small comparisons of a tiny model, for the tests of everything that compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bipline.comparison.methods import methods

from bipline.comparison.engine import compare
from bipline.comparison.grid import Common, Grid, choices
from bipline.comparison.inputs import Inputs, Settings, named, resolve_inputs
from bipline.face.options import several
from bipline.settings.protocol import Protocol
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

    def inputs(self) -> Inputs:
        calibrations = named("--calibration", [str(self.folder / "calibration.txt")])
        models = named("MODEL", [str(self.model)])
        return resolve_inputs(models, calibrations, self.texts, self.folder / "downloads")

    def grid(
        self,
        criteria: str = "wanda-sp",
        allocations: str = "",
        compensations: str = "",
        named: tuple[str, ...] = (),
        **axes: Any,
    ) -> Grid:
        usual: dict[str, Any] = {
            "layouts": ("uniform",), "ratios": (0.3,), "seeds": (0,), "common": Common(),
        }  # fmt: skip
        return Grid(
            models=(self.model.name,),
            calibrations=("calibration",),
            criteria=choices(several(criteria)),
            allocations=choices(several(allocations)),
            compensations=choices(several(compensations)),
            methods=methods(named),
            **{**usual, **axes},
        )

    def compare(
        self, out: str, jobs: int = 1, keep: bool = False, criteria: str = "wanda-sp", **axes: Any
    ) -> Comparison:
        settings = Settings(SAMPLES, SEQLEN, Protocol(seqlen=SEQLEN), "cpu")
        grid = self.grid(criteria, **axes)
        return compare(grid, self.inputs(), settings, self.folder / out, jobs, keep)

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
