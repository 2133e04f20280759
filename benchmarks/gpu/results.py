"""What every part came to, written after each, so that a run that is cut off leaves what it did."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bipline.storage.directory import write_text

SCHEMA_VERSION = 1
PASSED, FAILED, UNFINISHED = "passed", "failed", "unfinished"


@dataclass(frozen=True)
class Outcome:
    """One part: whether it passed, in one line why not, and what it found until then."""

    status: str
    reason: str = ""
    seconds: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)
    markdown: str = ""


@dataclass
class Results:
    """Outcomes by part. ``kept`` is the folder from which a later run goes on.

    Only what passed at the same scale by the same code counts there.
    """

    out: Path
    kept: Path
    scale: str
    code: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def load(self, name: str) -> bool:
        """Take in what an earlier run kept of a part; False where there is nothing that counts."""
        path = self._file(name)
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if (held.get("scale"), held.get("code")) != (self.scale, self.code):
            return False
        self.outcomes[name] = Outcome(**held["outcome"])
        return self.outcomes[name].status == PASSED

    def add(self, name: str, outcome: Outcome) -> None:
        """Take in one part, keep it, and write everything that is known."""
        self.outcomes[name] = outcome
        held = {"scale": self.scale, "code": self.code, "outcome": asdict(outcome)}
        self.kept.mkdir(parents=True, exist_ok=True)
        write_text(self._file(name), json.dumps(held) + "\n")
        self.write()

    def write(self) -> None:
        """Write ``gpu.json`` and ``gpu.md``."""
        parts = {
            name: {key: value for key, value in asdict(outcome).items() if key != "markdown"}
            for name, outcome in self.outcomes.items()
        }
        head = {"schema_version": SCHEMA_VERSION, "scale": self.scale, "code": self.code}
        text = json.dumps({**head, "passed": self.passed, "parts": parts}, indent=1)
        write_text(self.out / "gpu.json", text + "\n")
        write_text(self.out / "gpu.md", self._markdown())

    @property
    def passed(self) -> bool:
        """Whether all parts passed."""
        return all(outcome.status == PASSED for outcome in self.outcomes.values())

    def _markdown(self) -> str:
        rows = [
            f"| {name} | {outcome.status} | {outcome.seconds:.1f} | {outcome.reason} |"
            for name, outcome in self.outcomes.items()
        ]
        head = ["| part | status | s | reason |", "| :--- | :--- | ---: | :--- |"]
        table = "\n".join([*head, *rows])
        bodies = [f"## {name}\n\n{held.markdown}" for name, held in self.outcomes.items()]
        return "\n\n".join([f"# GPU benchmark, scale {self.scale}", table, *bodies]) + "\n"

    def _file(self, name: str) -> Path:
        return self.kept / f"{name}.json"
