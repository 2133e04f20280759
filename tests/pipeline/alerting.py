"""An alerter of the tests' own: it appends what it is told to a file, or fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zenml.alerter.base_alerter import BaseAlerter, BaseAlerterConfig, BaseAlerterFlavor


class FileAlerterConfig(BaseAlerterConfig):
    """Where messages go; ``nowhere`` fails."""

    path: str


class FileAlerter(BaseAlerter):
    """Appends a line a message."""

    def post(self, message: str, params: Any = None) -> bool:
        """Append the message."""
        path = Path(self.config.path)  # type: ignore[attr-defined]
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{message}\n")
        return True


class FileAlerterFlavor(BaseAlerterFlavor):
    """The flavor, by which ZenML finds both."""

    @property
    def name(self) -> str:
        """Its name."""
        return "file-of-the-tests"

    @property
    def config_class(self) -> type[FileAlerterConfig]:
        """Its configuration."""
        return FileAlerterConfig

    @property
    def implementation_class(self) -> type[FileAlerter]:
        """Itself."""
        return FileAlerter
