"""Handles of stored directories. The bytes stay in the Store; what is saved here is JSON.

Nothing is opened here: a stage that reads the bytes hashes every file again, and a byte that
changed in the Store stops it before anything is computed from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup
from zenml.enums import VisualizationType

from bipline.compression.statistics import KIND as STATISTICS
from bipline.compression.statistics import load_statistics
from bipline.delivery.page import Part, render_page
from bipline.delivery.pictures import Group, dots_picture, histogram_picture
from bipline.storage.store import Handle
from materializers.json_value import JsonMaterializer

REPORT = "report.html"


class HandleMaterializer(JsonMaterializer[Handle]):
    """Stores a handle as ``handle.json``."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Handle,)
    FILE_NAME: ClassVar[str] = "handle.json"

    def save_visualizations(self, data: Handle) -> dict[str, VisualizationType]:
        """What the directory declares, the importance of groups, and a package's report."""
        shown = super().save_visualizations(data)
        if data.kind == STATISTICS and Path(data.location).is_dir():
            part = Part("importance", "Importance per block", importance)
            page = render_page("Scores", data.digest, [part], Path(data.location))
            shown[self._write("importance.html", page)] = VisualizationType.HTML
        if (report := Path(data.location) / REPORT).is_file():
            page = report.read_text(encoding="utf-8")
            shown[self._write(REPORT, page)] = VisualizationType.HTML
        return shown


def importance(statistics: Path) -> tuple[str, Markup]:
    """By which criterion, and the report's pictures of scores while nothing is removed."""
    scores = load_statistics(statistics)[1]
    groups, channels = (
        [Group(tuple(each.tolist()), frozenset(range(len(each)))) for each in scored]
        for scored in zip(
            *((b.attention_groups, b.ffn_channels) for b in scores.blocks), strict=True
        )
    )
    body = dots_picture(groups, "attention group") + histogram_picture(channels, "FFN channels")
    return f"Scores by {scores.criterion}.", body
