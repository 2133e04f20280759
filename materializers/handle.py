"""Handles of stored directories. The bytes stay in the Store; what is saved here is JSON.

Saving verifies nothing, as the directory was hashed while it was written. Loading hashes every
file again: a byte that changed in the Store stops the next step, before anything is computed
from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from bipline.base.errors import InvalidInput, Refused
from bipline.compression.statistics import KIND as STATISTICS
from bipline.storage.manifest import read_manifest
from bipline.storage.store import Handle
from materializers.json_value import JsonMaterializer, figures, html_table
from materializers.pictures import importance_picture


class StoredGone(InvalidInput):
    """What a cached stage had stored is not in the Store any more."""


class HandleMaterializer(JsonMaterializer[Handle]):
    """Stores a handle as ``handle.json`` and opens its directory on loading."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Handle,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    FILE_NAME: ClassVar[str] = "handle.json"

    def load(self, data_type: type[Handle]) -> Handle:
        """Read the handle and re-hash what it names.

        Raises Refused when a byte differs, StoredGone when the directory is not there.
        """
        handle = super().load(data_type)
        if not Path(handle.location).is_dir():
            raise StoredGone(f"{handle.location}: the stored {handle.kind} is gone")
        try:
            handle.open()
        except Refused as error:
            raise Refused(f"{error}; delete {handle.location} and run again") from None
        return handle

    def extract_metadata(self, data: Handle) -> dict[str, Any]:
        """Digest, size and what the directory declares about itself."""
        own = {"digest": data.digest, "kind": data.kind, "total_bytes": data.total_bytes}
        return {**own, **figures(data.info)}

    def save_visualizations(self, data: Handle) -> dict[str, VisualizationType]:
        """What the directory declares, and its files with size and sha256."""
        manifest = read_manifest(Path(data.location))
        files = {
            name: f"{entry.size:,} bytes, sha256 {entry.sha256}"
            for name, entry in manifest.files.items()
        }
        text = html_table(self.extract_metadata(data)) + html_table(files)
        shown = {self._write("manifest.html", text): VisualizationType.HTML}
        if data.kind == STATISTICS:
            place = self._place("importance.png")
            with self.artifact_store.open(place, "wb") as file:
                file.write(importance_picture(Path(data.location)))
            shown[place] = VisualizationType.IMAGE
        return shown
