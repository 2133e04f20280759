"""An orchestrator of the tests' own that keeps schedules: a line in a file for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zenml.orchestrators import BaseOrchestrator, BaseOrchestratorConfig, BaseOrchestratorFlavor


class KeepingConfig(BaseOrchestratorConfig):
    """Where schedules are written down; ``refuses`` takes none."""

    path: str
    refuses: bool = False

    @property
    def is_schedulable(self) -> bool:
        """True."""
        return True

    @property
    def is_local(self) -> bool:
        """True: so ZenML asks for no server."""
        return True


class KeepingOrchestrator(BaseOrchestrator):
    """Writes down what it is asked to start, and starts nothing."""

    def get_orchestrator_run_id(self) -> str:
        """Of no run."""
        return "none"

    def submit_pipeline(self, snapshot: Any, **_: Any) -> None:
        """Keep a schedule."""
        if self.config.refuses:  # type: ignore[attr-defined]
            raise RuntimeError("http://ada:lovelace@host is full")
        schedule = snapshot.schedule
        steps = ",".join(snapshot.step_configurations)
        self._write(f"keep {schedule.name} {schedule.cron_expression} | {steps}")

    def delete_schedule(self, schedule: Any) -> None:
        """Forget a schedule."""
        self._write(f"forget {schedule.name}")

    def _write(self, line: str) -> None:
        with Path(self.config.path).open("a", encoding="utf-8") as file:  # type: ignore[attr-defined]
            file.write(f"{line}\n")


class KeepingFlavor(BaseOrchestratorFlavor):
    """The flavor, by which ZenML finds both."""

    @property
    def name(self) -> str:
        """Its name."""
        return "keeping"

    @property
    def config_class(self) -> type[KeepingConfig]:
        """Its configuration."""
        return KeepingConfig

    @property
    def implementation_class(self) -> type[KeepingOrchestrator]:
        """Itself."""
        return KeepingOrchestrator
