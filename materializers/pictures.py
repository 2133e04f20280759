"""Pictures for ZenML's dashboard, as PNG. The report draws its own, finer ones."""

from __future__ import annotations

import io
from pathlib import Path

from bipline.compression.statistics import load_statistics


def importance_picture(statistics: Path) -> bytes:
    """Importance per block as PNG: attention groups as marks, FFN channels as boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _, scores = load_statistics(statistics)
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    heads, channels = figure.subplots(2, 1, sharex=True)
    for index, block in enumerate(scores.blocks):
        groups = block.attention_groups
        heads.scatter([index] * len(groups), groups.tolist(), s=16, color="tab:blue")
    positions = range(len(scores.blocks))
    boxes = [block.ffn_channels.tolist() for block in scores.blocks]
    channels.boxplot(boxes, positions=positions, showfliers=False)
    heads.set(ylabel="attention groups", yscale="log", title=f"importance by {scores.criterion}")
    channels.set(ylabel="FFN channels", xlabel="block", yscale="log")
    picture = io.BytesIO()
    # Without the library's version and the date the same scores give the same bytes.
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    return picture.getvalue()
