"""Replay: the dense model pruned again by the package's plan must give the package's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bipline.audits.findings import compared, unknown
from bipline.base.errors import Refused
from bipline.compression.corrections import PLAN_NAME
from bipline.settings.line import AllocateSettings, CompensateSettings, LineSettings
from bipline.stages.beside import Places, prune_to
from bipline.storage.manifest import read_manifest
from bipline.values.audit import Finding
from bipline.values.plan import read_plan

NOT_REPLAYED = "that the tensors came from this model and plan rests on what the package says"


def replay_findings(
    place: Path, model: str | None, corrections: Path | None, downloads: Path
) -> Iterator[Finding]:
    """Prune ``model`` again, in a folder that goes afterwards, and compare tensor digests."""
    manifest, plan = read_manifest(place), read_plan(place / PLAN_NAME)
    if manifest.info.get("packaged") == "recovered":
        said = "the packaged model was trained after pruning; a training is not replayed"
        yield unknown("replay", said, NOT_REPLAYED)
        return
    if plan.compensation != "none" and corrections is None:
        said = "the plan's corrections lie in the run's Store; give their folder by --corrections"
        yield unknown("replay", said, NOT_REPLAYED)
        return
    made = _pruned_again(place, str(model), corrections, downloads)
    yield compared(
        "replay", f"pruned again from {model}: the same tensors, {made[:12]}",
        {"tensors": (made, manifest.info.get("tensor_digest"))},
    )  # fmt: skip


def _pruned_again(place: Path, model: str, corrections: Path | None, downloads: Path) -> str:
    settings = LineSettings(
        model=model,
        allocate=AllocateSettings(plan=str(place / PLAN_NAME)),
        compensate=CompensateSettings(corrections=str(corrections) if corrections else None),
    )
    with TemporaryDirectory(prefix="replay-", dir=_beside(downloads)) as folder:
        out = Path(folder) / "model"
        prune_to(settings, Places(out, downloads=downloads))
        digest = read_manifest(out).info.get("tensor_digest")
    if not isinstance(digest, str):
        raise Refused("the model that was pruned again tells no tensor digest")
    return digest


def _beside(downloads: Path) -> Path:
    downloads.mkdir(parents=True, exist_ok=True)
    return downloads
