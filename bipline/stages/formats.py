"""Formats of a package, asked before there is one: of the settings, and of a plan.

A plan that a format cannot hold is refused right after it was made, before anything is pruned,
trained or measured by it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bipline.base.progress import heading, note
from bipline.compression.allocate import uniform_config
from bipline.compression.compensation.checks import adds_output_biases
from bipline.compression.corrections import open_corrections
from bipline.compression.prune import adds_biases, pruned_config
from bipline.delivery.formats.interface import Layout
from bipline.delivery.formats.registry import check_formats
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import family_in, with_output_biases
from bipline.model.per_layer.config import per_layer_config
from bipline.model.shapes import BlockWidths, shape_of
from bipline.settings.compress import CompressSettings, ExportSettings
from bipline.settings.line import CompensateSettings, LineSettings
from bipline.stages.stage import Context, Lines
from bipline.stages.targets import with_ratio
from bipline.storage.store import Handle
from bipline.values.plan import PruningPlan, read_plan
from bipline.values.resolution import ResolvedModel


def check_plan(
    context: Context,
    model: ResolvedModel,
    plan: PruningPlan,
    settings: ExportSettings,
    compensation: CompensateSettings,
    corrections: Handle | None = None,
) -> dict[str, str]:
    """What each format will call the model that a plan makes.

    Raises InvalidInput where one cannot hold it, with the nearest choice that works.
    """
    heading("formats")
    checkpoint = context.opened(model)
    biased = adds_output_biases(compensation)
    if corrections:
        corrected = open_corrections(context.store.open(corrections))[1]
        biased = adds_biases(checkpoint, corrected)
    config = pruned_config(checkpoint, plan, biased)
    layouts = check_formats(settings.formats, outline(checkpoint, config), {}, settings)
    for name, layout in layouts.items():
        note(layout_text(name, layout, settings))
    return {name: layout.architecture for name, layout in layouts.items()}


def outline(checkpoint: Checkpoint, config: dict[str, Any]) -> Checkpoint:
    """A model that is to be made of another one: its config, and the tokenizer; no tensors yet."""
    family, shape = family_in(config), shape_of(config)
    return replace(checkpoint, config=config, family=family, shape=shape, tensors={})


def layout_text(name: str, layout: Layout, settings: ExportSettings) -> str:
    """How a format will hold a model, in a line."""
    own = getattr(settings, name, None)
    kind = f"{own.type}, " if own is not None and hasattr(own, "type") else ""
    return "; ".join([f"{name}: {kind}architecture {layout.architecture}", *layout.notes])


def check_settings(settings: CompressSettings, checkpoint: Checkpoint, thorough: bool) -> Lines:
    """How each format will hold what the settings make of a model, as far as they tell.

    Raises InvalidInput where one cannot.
    """
    section = settings.export
    formats = [name for name in section.formats if thorough or name != "hf"]
    places = {name: settings.texts[name] for name in settings.evaluate.texts}
    here = thorough and not any(place.startswith("hf:") for place in places.values())
    texts = {name: Path(place) for name, place in places.items()} if here else {}
    expected = outline(checkpoint, _expected_config(checkpoint, settings))
    layouts = check_formats(formats, expected, texts, section)
    told = [each for each in layouts if each != "hf"]
    return [("export", layout_text(name, layouts[name], section)) for name in told]


def _expected_config(checkpoint: Checkpoint, settings: LineSettings) -> dict[str, Any]:
    """The config of the smaller model where the settings fix it, else of one as wide as before."""
    section = settings.allocate
    biased = adds_output_biases(settings.compensate)
    if section.plan:
        return pruned_config(checkpoint, read_plan(Path(section.plan)), biased)
    config = with_output_biases(checkpoint.config) if biased else checkpoint.config
    shape = checkpoint.shape
    if section.layout == "per-layer":
        blocks = [shape.block(index) for index in range(shape.num_hidden_layers)]
        widths = [
            BlockWidths(
                num_key_value_heads=each.num_key_value_heads,
                intermediate_size=each.intermediate_size,
            )
            for each in blocks
        ]
        return per_layer_config(config, range(len(blocks)), widths)
    if section.allocation == "uniform":
        return uniform_config(config, checkpoint, with_ratio(checkpoint, section))
    return config
