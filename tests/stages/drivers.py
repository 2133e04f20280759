"""One request, driven in every way there is, and what each driver asked of its Store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import bipline
from bipline.compression import score as scoring
from bipline.settings.compress import CompressSettings
from bipline.settings.sweep import SweepSettings
from bipline.stages.stage import Context, Produce, Stage
from bipline.storage.store import Handle

LINE = ("calibrate", "score", "allocate", "compensate", "prune")
SAMPLES, SEQLEN, RATIO = 8, 16, 0.3


@dataclass
class Asked:
    """Keys by stage, digests of what lies there, what was made anew, and passes over windows."""

    keys: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    passes: int = 0

    @property
    def line(self) -> dict[str, str]:
        """The keys of the stages that make the smaller model."""
        return {stage: key for stage, key in self.keys.items() if stage in LINE}


@contextmanager
def watching() -> Iterator[Asked]:
    """Write down what stages of this process ask for and make, whoever drives them."""
    asked, run, score = Asked(), Stage.run, scoring.score_model

    def watched(
        self: Stage, context: Context, key: str, produce: Produce, title: str = ""
    ) -> Handle:
        def producing(*arguments: Any) -> object:
            asked.made.append(self.name)
            return produce(*arguments)

        handle = run(self, context, key, producing, title)
        asked.keys[self.name], asked.digests[self.name] = key, handle.digest
        return handle

    def passing(*arguments: Any, **more: Any) -> Any:
        asked.passes += 1
        return score(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "run", watched)
        patch.setattr(scoring, "score_model", passing)
        yield asked


@dataclass(frozen=True)
class Request:
    """A model, texts in a folder, and a method, as each driver is told them."""

    model: str
    folder: Path
    layout: str = "uniform"
    compensation: str = "none"
    dtype: str = "float32"

    @property
    def store(self) -> Path:
        """The Store that a compress run of this folder keeps."""
        return self.folder / "state" / "zenml" / "artifacts" / "bipline"

    def text(self, name: str) -> str:
        return str(self.folder / f"{name}.txt")

    def pruned(self, out: str, store: Path | str | None = None) -> Asked:
        """``bipline.prune``."""
        with watching() as asked:
            summary = bipline.prune(
                self.model, self.folder / out, calibration=self.text("calibration"), ratio=RATIO,
                samples=SAMPLES, seqlen=SEQLEN, layout=self.layout, criterion="llm-bip-glu",
                compensation=self.compensation, store=store and str(store), dtype=self.dtype,
                state=self.folder / "state",
            )  # fmt: skip
        assert summary.digest == asked.digests["prune"]
        return asked

    def command(self, out: str, store: Path | str) -> list[str]:
        """``bipline prune`` as a command line."""
        flags = {
            "out": self.folder / out, "calibration": self.text("calibration"), "ratio": RATIO,
            "samples": SAMPLES, "seqlen": SEQLEN, "layout": self.layout, "store": store,
            "criterion": "llm-bip-glu", "compensation": self.compensation,
            "state": self.folder / "state",
        }  # fmt: skip
        return ["prune", self.model, *(str(p) for n, v in flags.items() for p in (f"--{n}", v))]

    def settings(self, **sections: Any) -> CompressSettings:
        """The settings of ``bipline compress``; ``sections`` replace whole ones."""
        values: dict[str, Any] = {
            "model": self.model,
            "texts": {name: self.text(name) for name in ("calibration", "held-out")},
            "state": str(self.folder / "state"),
            "calibrate": {"samples": SAMPLES, "seqlen": SEQLEN},
            "score": {"criterion": "llm-bip-glu"},
            "allocate": {"ratio": RATIO, "layout": self.layout},
            "compensate": {"compensation": self.compensation},
            "compute": {"dtype": self.dtype},
            "evaluate": {"protocol": {"seqlen": SEQLEN}},
            "promote": {"name": "tiny"},
        }
        return CompressSettings.model_validate({**values, **sections})

    def compressed(self, **sections: Any) -> Asked:
        """``bipline.compress``: the stages as ZenML's steps."""
        with watching() as asked:
            bipline.compress(self.settings(**sections))
        return asked

    def swept(self) -> Asked:
        """``bipline.sweep`` of the one row."""
        with watching() as asked:
            bipline.sweep(
                SweepSettings.model_validate(
                    {
                        "model": self.model,
                        "texts": {name: self.text(name) for name in ("calibration", "held-out")},
                        "state": str(self.folder / "state"),
                        "grid": self.grid,
                        "calibrate": {"samples": SAMPLES, "seqlen": SEQLEN},
                        "evaluate": {"protocol": {"seqlen": SEQLEN}},
                    }
                )
            )
        return asked

    def compared(self, out: str) -> Asked:
        """``bipline.compare`` of the one row."""
        with watching() as asked:
            bipline.compare(
                self.model, self.folder / out, calibration=[self.text("calibration")],
                texts={"held-out": self.text("held-out")}, samples=SAMPLES, seqlen=SEQLEN,
                evaluation_seqlen=SEQLEN, state=self.folder / "state", keep=True, dtype=self.dtype,
                **self.grid,
            )  # fmt: skip
        return asked

    @property
    def grid(self) -> dict[str, Any]:
        return {
            "criteria": ("llm-bip-glu",), "layouts": (self.layout,), "ratios": (RATIO,),
            "compensations": (self.compensation,),
        }  # fmt: skip
