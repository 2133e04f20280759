"""Speed: the dense model and what became of it take turns in one run, so both meet one machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput
from bipline.base.progress import heading
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import choose_device
from bipline.model.opening import open_checkpoint
from bipline.quality.speed import measure_speed
from bipline.settings.line import ComputeSettings
from bipline.settings.protocol import Protocol
from bipline.stages.resolve import glance, local_copy
from bipline.stages.speed_served import is_served, measure_served
from bipline.stages.stage import Context, Stage
from bipline.storage.store import Handle
from bipline.values.record import EvaluationRecord
from bipline.values.resolution import ResolvedModel
from bipline.values.speed import Speeds

STAGE = Stage("speed", "speeds", ("bipline.quality.speed",))


def speed(
    context: Context, dense: ResolvedModel, made: Mapping[str, Handle], protocol: Protocol
) -> Speeds:
    """Speeds of the dense model and of those made of it, by name.

    Two names of one model, as after a refused recovery, are measured once.
    """
    names = {handle.content: name for name, handle in reversed(list(made.items()))}

    def measure(work: Path) -> Speeds:
        models = {"dense": open_checkpoint(local_copy(dense, context.downloads))}
        for name, handle in made.items():
            if names[handle.content] == name:
                models[name] = open_checkpoint(context.store.open(handle))
        return Speeds(models=measure_speed(models, protocol, context.device))

    inputs = {"dense": dense.identity, **{name: each.content for name, each in made.items()}}
    key = STAGE.key(inputs, speed_settings(protocol), {"device": context.device.type})
    return STAGE.value(context, key, Speeds, measure)


def speed_settings(protocol: Protocol) -> dict[str, Any]:
    """What of a protocol decides how speed is measured."""
    own = {name for name in Protocol.model_fields if name.startswith("speed")}
    told = protocol.model_dump(mode="json", include={"dtype", *own})
    return {**told, "speed_batch": protocol.speed_batch}


def measured(models: Mapping[str, Checkpoint], protocol: Protocol, device: torch.device) -> Speeds:
    """Speeds that are kept nowhere."""
    heading(f"speed of {', '.join(models)}")
    return Speeds(models=measure_speed(models, protocol, device))


def measure_sources(
    sources: Mapping[str, str], protocol: Protocol, compute: ComputeSettings, downloads: Path
) -> Speeds:
    """Speeds of models by their sources, kept nowhere: all of models, or all as engines serve them.

    Raises InvalidInput for a mixture, and for what cannot be measured.
    """
    served = {name: is_served(source) for name, source in sources.items()}
    if all(served.values()):
        return measure_served(sources, protocol)
    if any(served.values()):
        raise InvalidInput(
            "speed: one is served by an engine and one is a model directory; another engine has "
            "another speed, so give both in one form"
        )
    device = choose_device(compute.device)
    places = {name: glance(source, downloads).location for name, source in sources.items()}
    opened = {name: open_checkpoint(place) for name, place in places.items()}
    return measured(opened, protocol, device)


def with_speeds(
    records: Mapping[str, EvaluationRecord], speeds: Speeds | None
) -> dict[str, EvaluationRecord]:
    """Records by model with the speeds that were measured of them."""
    found = speeds.models if speeds else {}
    return {
        name: record.model_copy(update={"speed": found[name]}) if name in found else record
        for name, record in records.items()
    }
