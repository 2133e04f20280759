"""Handles of stored directories. The bytes stay in the Store; what is saved here is JSON.

Nothing is opened here: a stage that reads the bytes hashes every file again, and a byte that
changed in the Store stops it before anything is computed from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from bipline.compression.statistics import KIND as STATISTICS
from bipline.storage.store import Handle
from materializers.json_value import JsonMaterializer, figures, html_table
from materializers.pictures import importance_picture


class HandleMaterializer(JsonMaterializer[Handle]):
    """Stores a handle as ``handle.json``."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Handle,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    FILE_NAME: ClassVar[str] = "handle.json"

    def extract_metadata(self, data: Handle) -> dict[str, Any]:
        """Digest, size and what the directory declares about itself."""
        own = {"digest": data.digest, "kind": data.kind, "total_bytes": data.total_bytes}
        return {**own, **figures(data.info)}

    def save_visualizations(self, data: Handle) -> dict[str, VisualizationType]:
        """What the directory declares, and the importance of groups where it holds scores."""
        text = html_table(self.extract_metadata(data))
        shown = {self._write("handle.html", text): VisualizationType.HTML}
        if data.kind == STATISTICS and Path(data.location).is_dir():
            place = self._place("importance.png")
            with self.artifact_store.open(place, "wb") as file:
                file.write(importance_picture(Path(data.location)))
            shown[place] = VisualizationType.IMAGE
        return shown
